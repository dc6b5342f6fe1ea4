"""A checkpoint's files: where they lie, which of them are read, and their fingerprint."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from quantlab.config.checks import can_name_hub_repository, refuse_pointer
from quantlab.storage.files import digest, file_digest

CONFIG, INDEX = "config.json", ".index.json"
SAFETENSORS = ("model.safetensors", f"model.safetensors{INDEX}")
PICKLES = ("pytorch_model.bin", f"pytorch_model.bin{INDEX}")
WEIGHTS = (*SAFETENSORS, *PICKLES)  # in the order in which transformers looks for them
OTHER_WEIGHTS = (  # suffixes that are not read, for the error message
    ".safetensors",
    ".bin",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".pt",
    ".pth",
    ".ckpt",
)
DISTRIBUTED = "shard-[0-9]*-model-*.safetensors"  # transformers prefers these to all others
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
NAMED = 5  # at most so many names in a message
LEARNED = "quantlab_plan"  # a folder: the plan that the checkpoint was trained through
ORIGIN = "origin.json"  # beside a converted checkpoint: {"weights": what they were made from}
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TOKENIZER = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PREPROCESSOR = "preprocessor_config.json"  # of an image processor


def require_path(path: object) -> None:
    """Raises ValueError if a model's path is not a text."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"model path must be a folder or a name on the hub, got {path!r}")


def locate(path: str, revision: str | None) -> Path:
    """The folder or GGUF file of a local path, or the local snapshot of a hub name.

    Downloads from the hub only the files that are read. Raises FileNotFoundError for a path that does not
    exist, and OSError if neither the hub nor its cache has the model.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() or (folder.suffix == ".gguf" and folder.is_file()):
        return folder
    if not can_name_hub_repository(path):
        raise FileNotFoundError(f"model path {path!r} is no folder, and no name on the hub")
    try:
        snapshot = _downloaded(path, revision, (CONFIG, ADAPTERS[0], *TOKENIZER, PREPROCESSOR, *SAFETENSORS))
        if not files_matching(snapshot, SAFETENSORS):
            _downloaded(path, revision, PICKLES)
        weights = next((snapshot / name for name in WEIGHTS if (snapshot / name).is_file()), None)
        if weights is not None and weights.name.endswith(INDEX):
            _downloaded(path, revision, _listed(weights))
    except (OSError, ValueError) as error:  # all of the hub's errors: no network, offline mode, no such name
        raise OSError(
            f"model path {path!r} is no folder here, and the Hugging Face Hub did not give it: {error}"
        ) from error
    return snapshot


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers reads: the first of ``WEIGHTS`` that exists, and an index's shards.

    Raises FileNotFoundError if there is none or a shard is missing, and ValueError if transformers would read
    other files or the files are Git LFS pointers.
    """
    if distributed := files_matching(folder, (DISTRIBUTED,)):
        raise ValueError(
            f"{folder} holds parts of a distributed checkpoint ({distributed[0].name}): save it as one"
        )
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        others = [path.name for path in sorted(folder.iterdir()) if path.suffix in OTHER_WEIGHTS]
        hint = f"; a variant or another format is not read: {', '.join(others[:NAMED])}" if others else ""
        raise FileNotFoundError(
            f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin{hint}"
        )
    refuse_pointer(weights)
    files = [weights, *_shards(weights)] if weights.name.endswith(INDEX) else [weights]
    for path in files:
        refuse_pointer(path)
    return files


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files that are read: config, weights, processor, learned
    plan."""
    files = [folder / CONFIG, *weight_files(folder), *files_matching(folder, (*TOKENIZER, PREPROCESSOR))]
    files += sorted((folder / LEARNED).glob("*"))
    return digest(part for path in files for part in (path.name, file_digest(path)))


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Raises whatever a library raises about a broken file as one ValueError that names the file."""
    try:
        yield
    except pickle.UnpicklingError as error:
        # the rest of torch's message advises unpickling it anyway
        reason = str(error).partition("source.")[2].strip().partition("\n\n")[0]
        raise ValueError(
            f"{path} is corrupt, or holds code, which is never run: {reason or error}"
        ) from error
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        EOFError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _downloaded(path: str, revision: str | None, files: Sequence[str]) -> Path:
    """The local snapshot of a hub model, with those of ``files`` that the model has."""
    return Path(snapshot_download(path, revision=revision, allow_patterns=list(files)))


def _shards(index: Path) -> list[Path]:
    """The weight files that an index lists. Raises FileNotFoundError if one is missing."""
    names = _listed(index)
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index} lists shards that are not there: {', '.join(missing[:NAMED])}")
    return [index.parent / name for name in names]


def _listed(index: Path) -> list[str]:
    """The names of the weight files in an index.

    Raises ValueError if it is broken or names files outside its folder.
    """
    with clear_errors(index):
        content = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"weight_map", "metadata"} <= content.keys():
            raise ValueError("expected an object with weight_map and metadata")
        names = sorted({str(name) for name in content["weight_map"].values()})
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{outside[0]!r} is no file beside it")
    return names


def files_matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The folder's files that match any of the globs, sorted."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})
