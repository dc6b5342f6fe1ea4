"""Reads a checkpoint's processor: the tokenizer or image processor that makes the network's inputs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.config.checks import refuse_pointer
from quantlab.network.checkpoint import quiet
from quantlab.network.checkpoint_files import (
    PREPROCESSOR,
    TOKENIZER,
    VOCABULARIES,
    clear_errors,
    files_matching,
)
from quantlab.tasks.heads import CLASSES, IMAGES, TOKENS

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

Processor = Any  # a tokenizer, or for the head IMAGES an image processor


def read_processor(folder: Path, head: str) -> Processor:
    """What turns a task's texts or images into the inputs of a network with this head.

    Raises what :func:`read_tokenizer` and :func:`read_image_processor` raise.
    """
    return read_image_processor(folder) if head == IMAGES else read_tokenizer(folder, head)


def read_tokenizer(folder: Path, head: str = CLASSES) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer.

    Raises FileNotFoundError if its vocabulary is missing (transformers does not complain), and
    ValueError if its files are broken or it has no padding token. Next tokens are asked of windows of one
    length, which need none.
    """
    from transformers import AutoTokenizer

    files = files_matching(folder, VOCABULARIES)
    if not files:
        raise FileNotFoundError(f"{folder} holds no tokenizer: expected one of {', '.join(VOCABULARIES)}")
    for path in files_matching(folder, TOKENIZER):
        refuse_pointer(path)
    with quiet(), clear_errors(files[0]):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    if tokenizer.pad_token_id is None and head != TOKENS:
        raise ValueError(
            f"{folder}: the tokenizer has no pad token: name it as pad_token in tokenizer_config.json"
        )
    return tokenizer


def read_image_processor(folder: Path) -> BaseImageProcessor:
    """A checkpoint's image processor that computes with Pillow and NumPy.

    Raises FileNotFoundError without preprocessor_config.json, ModuleNotFoundError without Pillow, and
    ValueError if the file is broken.
    """
    import transformers

    path = folder / PREPROCESSOR
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {PREPROCESSOR}: how images are scaled and normalized is not known"
        )
    if find_spec("PIL") is None:
        raise ModuleNotFoundError("images need Pillow: pip install 'quantlab[vision]'")
    refuse_pointer(path)
    with quiet(), clear_errors(path):
        auto: Any = transformers.AutoImageProcessor
        processor: BaseImageProcessor = auto.from_pretrained(
            folder, backend="pil", trust_remote_code=False, local_files_only=True
        )
    return processor
