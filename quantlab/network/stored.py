"""Single tensors of a checkpoint's weight files: their names and shapes, and their values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from quantlab.network.checkpoint_files import INDEX, clear_errors


def stored_shapes(files: Sequence[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor in the weight files, without reading the weights."""
    for path in files:
        if path.name.endswith(INDEX):
            continue
        with clear_errors(path):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    yield from [(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
            else:
                yield from [(name, tuple(tensor.shape)) for name, tensor in _unpickled(path, "meta").items()]


def stored_tensors(files: Sequence[Path], names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """The name and value of the tensors in the weight files that have these names."""
    for path in files:
        if path.name.endswith(INDEX):
            continue
        with clear_errors(path):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    yield from [(name, file.get_tensor(name)) for name in file.keys() if name in names]  # noqa: SIM118
            else:
                held = _unpickled(path, "cpu")
                yield from [(name, tensor) for name, tensor in held.items() if name in names]


def _unpickled(path: Path, device: str) -> Mapping[str, Tensor]:
    tensors = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise ValueError("expected tensors by name")
    return tensors
