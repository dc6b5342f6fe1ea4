"""Changed attention of a checkpoint that is read: its gates in the weight files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from quantlab.network.changed_attention import KEY, change_of
from quantlab.network.checkpoint_files import NAMED
from quantlab.network.stored import stored_shapes, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checked_gates(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The names of the tensors that the attention of the model's config adds to it; none if it is plain.

    ``stored`` are the weight files' tensors. Raises ValueError if the model cannot have such attention, and
    if tensors are missing or misshapen.
    """
    change = change_of(model.config)
    if change is None:
        return set()
    change.check(model)
    expected = change.shapes(model)
    if missing := sorted(expected.keys() - stored.keys()):
        raise ValueError(f"no tensor {', '.join(missing[:NAMED])} is stored, which {KEY} asks for")
    wrong = [
        f"{name} has shape {list(stored[name])}, {KEY} asks for {list(shape)}"
        for name, shape in expected.items()
        if stored[name] != shape
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:NAMED]))
    return set(expected)


def change_as_stored(model: PreTrainedModel, files: Sequence[Path]) -> set[str]:
    """Changes the attention of a model as its config says, with the gates of these weight files.

    Returns the names of the gates' tensors. Raises ValueError as :func:`checked_gates` does.
    """
    change = change_of(model.config)
    if change is None:
        return set()
    names = checked_gates(model, dict(stored_shapes(files)))
    change.install(model)
    with torch.no_grad():
        for name, tensor in stored_tensors(files, names):
            model.get_parameter(name).copy_(tensor)
    return names
