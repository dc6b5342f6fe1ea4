"""GGUF files as checkpoints: transformers reads one once, and its FP32 weights are stored as a checkpoint."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from quantlab.network.checkpoint import quiet
from quantlab.network.checkpoint_files import CONFIG, NAMED, ORIGIN, clear_errors
from quantlab.storage.files import cache_dir, digest, file_digest, whole_folder
from quantlab.tasks.heads import TOKENS, auto_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGES = ("gguf", "accelerate")  # that transformers needs to read a GGUF file
PRECOMPUTED = re.compile(r"rope_(freqs|factors_\w+)\.weight")  # tensors that transformers computes itself


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or that a folder without config.json holds; None for a checkpoint.

    Raises ValueError if the folder holds several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if not files or (path / CONFIG).exists():
        return None
    if len(files) > 1:
        listed = ", ".join(file.name for file in files[:NAMED])
        raise ValueError(f"{path} holds {len(files)} GGUF files ({listed}): name one as model.path")
    return files[0]


def converted(file: Path) -> Path:
    """The folder in the cache with a GGUF file's weights in FP32, its config and its tokenizer.

    It is made once for each content: dequantizing takes much longer than reading the result. Raises
    ModuleNotFoundError that names the extra without the packages, and ValueError if the file cannot be read,
    or its tensors are not all of the network's and no others.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ModuleNotFoundError(
            f"{file.name} is a GGUF file, and {' and '.join(missing)} is not installed: "
            "pip install 'quantlab[lm]'"
        )
    libraries = [version(name) for name in ("transformers", "gguf")]
    folder = cache_dir() / "gguf" / f"{file.stem}-{digest([file_digest(file), *libraries])[:16]}"
    if not folder.is_dir():
        with whole_folder(folder) as scratch:
            _convert(file, scratch)
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    with quiet(), clear_errors(file), torch.random.fork_rng([]):
        stored = _tensors(file)
        settings: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **settings)
        model, info = auto_class(TOKENS).from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **settings
        )
        _require_whole(model, info["missing_keys"], stored)
        model.hf_quantizer = None  # the weights are plain FP32 from here on
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / ORIGIN).write_text(json.dumps({"weights": _origin(stored)}) + "\n", encoding="utf-8")


def _tensors(file: Path) -> dict[str, tuple[str, int]]:
    """The storage type and the number of elements of every tensor, by name."""
    from gguf import GGUFReader

    tensors = GGUFReader(file).tensors
    return {each.name: (each.tensor_type.name, int(each.n_elements)) for each in tensors}


def _require_whole(model: PreTrainedModel, missing: set[str], stored: Mapping[str, tuple[str, int]]) -> None:
    """Raises ValueError unless the file holds all of the network's numbers and no others.

    transformers maps the names and skips those that it does not know, so the numbers are counted.
    """
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing)[:NAMED])}")
    held = sum(count for name, (_, count) in stored.items() if not PRECOMPUTED.fullmatch(name))
    if held != model.num_parameters():
        raise ValueError(
            f"it holds {held:,} weights, and transformers' {type(model).__name__} of its settings has "
            f"{model.num_parameters():,}"
        )


def _origin(stored: Mapping[str, tuple[str, int]]) -> str:
    """How the weights were stored: types with their counts of tensors, the commonest first."""
    counts = Counter(kind for kind, _ in stored.values())
    tensors = ", ".join(f"{count} in {kind}" for kind, count in counts.most_common())
    bits = [int(found[1]) for kind in counts if (found := re.match(r"I?Q(\d)", kind))]
    release = f"a {min(bits)}-bit release dequantized to FP32" if bits else "a release in floating point"
    return f"{release}: GGUF tensors {tensors}"
