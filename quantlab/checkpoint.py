"""Reading a checkpoint folder: its files, config, weights and tokenizer. Nothing in it is ever run."""

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from quantlab.cache import digest, file_digest

SAFETENSORS = ("model*.safetensors", "model*.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TOKENIZER = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SILENT = 50  # the level CRITICAL
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def require_path(path: object) -> None:
    """Raises ValueError where a model's path is no text."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"model path must be a folder or a name on the hub, got {path!r}")


def locate(path: str, revision: str | None) -> Path:
    """The folder of a local path or a hub name; of the hub, only the files that are read are downloaded.

    Raises FileNotFoundError for a path that is not there, and OSError where the hub or its cache has no such model.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_NAME.fullmatch(path) or folder.exists() or (folder.parent != Path() and folder.parent.is_dir()):
        raise FileNotFoundError(f"model path {path!r} is no folder, and no name on the hub")
    try:
        fetched = Path(
            snapshot_download(path, revision=revision, allow_patterns=["config.json", *TOKENIZER, *SAFETENSORS])
        )
        if not _matching(fetched, SAFETENSORS):
            snapshot_download(path, revision=revision, allow_patterns=list(PICKLES))
    except (OSError, ValueError) as error:  # no network, offline mode, or no such name; all of the hub's errors
        raise OSError(
            f"model path {path!r} is no folder here, and the Hugging Face Hub did not give it: {error}"
        ) from error
    return fetched


def weight_files(folder: Path) -> list[Path]:
    """The weight files (and their indices) that are read: safetensors, or .bin files where there are none."""
    files = _matching(folder, SAFETENSORS) or _matching(folder, PICKLES)
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin")
    return files


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of all that is read: config, weights and tokenizer."""
    files = [folder / "config.json", *weight_files(folder), *_matching(folder, TOKENIZER)]
    return digest(part for path in files for part in (path.name, file_digest(path)))


def read_config(folder: Path) -> PretrainedConfig:
    """A checkpoint's config: the cheap look before weights are read.

    Raises FileNotFoundError where there is none, ValueError where it is broken, unknown, or of a quantized checkpoint.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it is no Hugging Face checkpoint")
    with _clear_errors(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {type(content).__name__}")
        if "quantization_config" in content:
            raise ValueError("the checkpoint is quantized already; quantlab starts from floating-point weights")
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return config


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer. Raises FileNotFoundError where its vocabulary is missing; transformers forgives it."""
    files = _matching(folder, VOCABULARIES)
    if not files:
        raise FileNotFoundError(f"{folder} holds no tokenizer: expected one of {', '.join(VOCABULARIES)}")
    with quiet(), _clear_errors(files[0]):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return tokenizer


def read_model(folder: Path, **config: Any) -> tuple[PreTrainedModel, set[str]]:
    """A sequence classifier in FP32, and the names of the tensors that its weight files lack.

    ``config`` overrides keys of its config. Raises ValueError on unreadable files, on tensors of another shape, on
    NaN and infinities, and on pickled code, which torch's weights-only loader refuses.
    """
    files = weight_files(folder)
    with quiet(), _clear_errors(files[0]):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # reported below, with names and shapes
            output_loading_info=True,
            weights_only=True,
            trust_remote_code=False,
            local_files_only=True,
            **config,
        )
        _require_sound(model, info)
    return model, info["missing_keys"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' loading reports and bars: what matters of them is raised as an error here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(SILENT)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        # torch's message goes on to advise unpickling it anyway
        reason = str(error).partition("source.")[2].strip().partition("\n\n")[0]
        raise ValueError(f"{path} is corrupt, or holds code, which is never run: {reason or error}") from error
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _require_sound(model: PreTrainedModel, info: dict[str, Any]) -> None:
    problems = [
        f"{name} has shape {list(stored)}, config.json asks for {list(asked)}"
        for name, stored, asked in sorted(info["mismatched_keys"])
    ]
    problems += [str(message) for message in info["error_msgs"]]
    tensors = ((name, tensor) for name, tensor in model.state_dict().items() if name not in info["missing_keys"])
    problems += [f"{name} holds NaN or infinity" for name, tensor in tensors if not torch.isfinite(tensor).all()]
    if problems:
        raise ValueError("; ".join(problems[:5]))


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})
