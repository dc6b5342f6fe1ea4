"""Where a checkpoint's folder comes from: a folder or GGUF file, the hub, or an installed package.

What is no folder that transformers reads is converted once and stored in the cache folder.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quantlab.network import checkpoint_files
from quantlab.network.gguf import converted, gguf_file


class CheckpointSource(ABC):
    """How a checkpoint's folder is found or made."""

    @abstractmethod
    def folder(self) -> Path:
        """The folder of its checkpoint. Raises OSError if it cannot be fetched."""


@dataclass(frozen=True, kw_only=True)
class Pretrained(CheckpointSource):
    """A folder, a GGUF file, or a name on the hub."""

    path: str
    revision: str | None = None

    def __post_init__(self) -> None:
        checkpoint_files.require_path(self.path)

    def folder(self) -> Path:
        """The folder itself, the hub's files in its local cache, or a GGUF file's conversion."""
        return readable(checkpoint_files.locate(self.path, self.revision))


@dataclass(frozen=True, kw_only=True)
class Packaged(CheckpointSource):
    """A checkpoint in the files of an installed Python package, which is never imported."""

    package: str
    inside: str  # the folder, or the GGUF file, inside the package
    extra: str  # the extra of quantlab that installs it

    def folder(self) -> Path:
        """The folder in the package, or a GGUF file's conversion.

        Raises FileNotFoundError that names the extra if the package is not installed.
        """
        return readable(package_folder(self.package, self.extra) / self.inside)


def package_folder(package: str, extra: str) -> Path:
    """The folder of an installed package's files. The package is not imported.

    Raises FileNotFoundError that names quantlab's extra if the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"package {package} is not installed: pip install 'quantlab[{extra}]'")
    return Path(spec.submodule_search_locations[0])


def readable(path: Path) -> Path:
    """A folder that transformers reads: ``path`` itself, or what its GGUF file is converted to."""
    file = gguf_file(path)
    return path if file is None else converted(file)


def origin_tags(folder: Path) -> dict[str, str]:
    """The tag ``weights_origin`` of a converted checkpoint: what its weights were made from."""
    path = folder / checkpoint_files.ORIGIN
    return {"weights_origin": str(json.loads(path.read_text())["weights"])} if path.is_file() else {}
