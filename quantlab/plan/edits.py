"""Edits of parameters: what a plan changes before it quantizes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quantlab.quant.frozen_tensor import FrozenTensor


@dataclass(frozen=True, kw_only=True)
class Edit(ABC):
    """A change of one parameter."""

    kind: ClassVar[str]  # its name in JSON

    parameter: str

    @abstractmethod
    def __call__(self, value: Tensor) -> Tensor:
        """The parameter's new value, of the same shape and dtype; the old one is untouched."""


@dataclass(frozen=True, kw_only=True)
class Clip(Edit):
    """Clamps to [-limit, limit]."""

    kind = "clip"

    limit: float

    def __call__(self, value: Tensor) -> Tensor:
        return value.clamp(-self.limit, self.limit)


@dataclass(frozen=True, kw_only=True)
class Add(Edit):
    """Adds an array of the parameter's shape."""

    kind = "add"

    values: FrozenTensor

    def __call__(self, value: Tensor) -> Tensor:
        return value + self.values.tensor.to(value)


EDITS: dict[str, type[Edit]] = {edit.kind: edit for edit in (Clip, Add)}
