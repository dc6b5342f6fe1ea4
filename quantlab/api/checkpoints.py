"""A model in memory as the checkpoint folder that a trial reads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from quantlab.network.checkpoint import quiet
from quantlab.storage.files import digest, file_digest, whole_folder
from quantlab.tasks.heads import AUTO_CLASSES, auto_class, has_head

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

    Processor = PreTrainedTokenizerBase | BaseImageProcessor


def saved_checkpoint(model: PreTrainedModel, processor: Processor) -> Path:
    """Saves a model and its processor to a temporary folder, once for each content, and returns the folder.

    It is removed when the process ends. Raises ValueError where the model is none of the
    networks with a head that its config describes: another would be read back from the folder.
    """
    _require_plain(model)
    content = digest(_content(model, processor))
    folder = _scratch() / f"{model.config.model_type}-{content[:16]}"
    if not folder.is_dir():
        with whole_folder(folder) as unfinished, quiet():
            model.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
    return folder


@cache
def _scratch() -> Path:
    """This process's own temporary folder."""
    folder = TemporaryDirectory(prefix="quantlab-models-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # removed by their finalizers when the process ends


def _require_plain(model: PreTrainedModel) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        hint = (
            ": merge the adapter first, with merge_and_unload" if hasattr(model, "merge_and_unload") else ""
        )
        raise ValueError(f"model must be a model of transformers, got {type(model).__name__}{hint}")
    heads = [head for head in AUTO_CLASSES if has_head(model.config, head)]
    expected = [auto_class(head)._model_mapping[type(model.config)] for head in heads]
    if type(model) not in expected:
        names = " or ".join(each.__name__ for each in expected)
        raise ValueError(f"model must be a {names}, got {type(model).__name__}")


def _content(model: PreTrainedModel, processor: Processor) -> Iterator[str | bytes]:
    """All that decides the model's answers: config, processor's files, and every tensor's bytes."""
    with TemporaryDirectory() as folder, quiet():
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            yield from (path.name, file_digest(path))
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield from (
            name,
            str(tensor.dtype),
            str(tuple(tensor.shape)),
            flat.view(torch.uint8).numpy().tobytes(),
        )
