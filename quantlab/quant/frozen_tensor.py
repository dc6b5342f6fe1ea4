"""A tensor as a value: immutable, and equal to another if shape, dtype and every element are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class FrozenTensor:
    """A contiguous copy of a tensor on the CPU that nothing writes to, for fields of frozen dataclasses.

    ``len`` and iteration are over all elements. A plan stores it in its safetensors file.
    """

    def __init__(self, values: Tensor | list[Any] | tuple[Any, ...]):
        self._tensor = torch.as_tensor(values).detach().cpu().clone().contiguous()

    @property
    def tensor(self) -> Tensor:
        """The tensor itself, which must not be written to."""
        return self._tensor

    @cached_property
    def digest(self) -> str:
        """SHA-256 of dtype, shape and bytes."""
        seen = hashlib.sha256(f"{self._tensor.dtype} {tuple(self._tensor.shape)} ".encode())
        seen.update(self._tensor.reshape(-1).view(torch.uint8).numpy().data)
        return seen.hexdigest()

    def __len__(self) -> int:
        return self._tensor.numel()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tensor.flatten().tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenTensor) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"FrozenTensor({tuple(self._tensor.shape)}, {self._tensor.dtype}, {self.digest[:8]})"
