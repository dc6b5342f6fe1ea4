"""Bases: invertible changes of coordinates along a tensor's channels, in which an operand is quantized.

A basis is a pair (T, z). The operand is quantized as ``(x - z) T``, a weight that reads it as ``W T^-T``. The
product of the two is ``(x - z) W^T``, whatever T is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.hadamard import check_size, multiply_hadamard, multiply_hadamard_transposed

ORTHONORMAL = 1e-4  # how far a product of an orthogonal matrix with its transpose may be from the identity


@dataclass(frozen=True)
class Basis(ABC):
    """One kind of change of basis. All verbs work along the last dimension, in the tensor's own dtype."""

    kind: ClassVar[str]

    @property
    def shift(self) -> FrozenTensor | None:
        """z, shape (channels,); None where it is zero."""
        return None

    @property
    @abstractmethod
    def channels(self) -> int:
        """The size of the dimension that the basis works along."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``(x - z) T``: an operand in this basis."""

    @abstractmethod
    def back(self, y: Tensor) -> Tensor:
        """``y T^-1 + z``: the inverse of :meth:`forward`."""

    @abstractmethod
    def weight(self, w: Tensor) -> Tensor:
        """``W T^-T``: a weight of shape (outputs, channels) that reads the operand in this basis."""

    @abstractmethod
    def weight_back(self, w: Tensor) -> Tensor:
        """``W T^T``: the inverse of :meth:`weight`."""


@dataclass(frozen=True)
class Diagonal(Basis):
    """Every channel divided by its own ``scale`` after ``shift`` is taken from it: T = diag(1 / scale).

    Raises ValueError unless every scale is positive and finite and every shift is finite.
    """

    scale: FrozenTensor
    shift: FrozenTensor | None = None

    kind: ClassVar[str] = "diagonal"

    def __post_init__(self) -> None:
        scale = self.scale.tensor
        if scale.ndim != 1 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError("the scale of a basis must be one positive number a channel")
        if self.shift is not None:
            shift = self.shift.tensor
            if shift.shape != scale.shape or not bool(torch.isfinite(shift).all()):
                raise ValueError("the shift of a basis must be one finite number a channel")

    @property
    def channels(self) -> int:
        return len(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.shift is None else x - self.shift.tensor.to(x)) / self.scale.tensor.to(x)

    def back(self, y: Tensor) -> Tensor:
        x = y * self.scale.tensor.to(y)
        return x if self.shift is None else x.add_(self.shift.tensor.to(y))

    def weight(self, w: Tensor) -> Tensor:
        return w * self.scale.tensor.to(w)

    def weight_back(self, w: Tensor) -> Tensor:
        return w / self.scale.tensor.to(w)


@dataclass(frozen=True)
class Orthonormal(Basis):
    """A basis with ``T T^T = I`` and no shift. Operands and weights change alike."""

    def weight(self, w: Tensor) -> Tensor:
        return self.forward(w)

    def weight_back(self, w: Tensor) -> Tensor:
        return self.back(w)


@dataclass(frozen=True)
class Hadamard(Orthonormal):
    """A randomized Hadamard rotation of every ``block`` channels: T = diag(signs) H, orthonormal (QuaRot,
    Ashkboos et al. 2024).

    ``signs`` holds 1 or -1 for every channel. Raises ValueError where no Hadamard matrix of the block's size
    is known here, or where the block does not divide the channels.
    """

    signs: FrozenTensor
    block: int

    kind: ClassVar[str] = "hadamard"

    def __post_init__(self) -> None:
        check_size(self.block)
        if self.channels % self.block:
            raise ValueError(f"a Hadamard block of {self.block} does not divide {self.channels} channels")
        if not bool((self.signs.tensor.abs() == 1).all()):
            raise ValueError("the signs of a Hadamard rotation must be 1 or -1")

    @property
    def channels(self) -> int:
        return len(self.signs)

    def forward(self, x: Tensor) -> Tensor:
        return self._blocks(x * self.signs.tensor.to(x), multiply_hadamard)

    def back(self, y: Tensor) -> Tensor:
        return self._blocks(y, multiply_hadamard_transposed).mul_(self.signs.tensor.to(y))

    def _blocks(self, x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        return multiply(x.reshape(-1, self.block)).reshape(x.shape)


@dataclass(frozen=True)
class Orthogonal(Orthonormal):
    """T is an orthonormal ``matrix`` of shape (channels, channels).

    Raises ValueError if it is not orthonormal.
    """

    matrix: FrozenTensor

    kind: ClassVar[str] = "orthogonal"

    def __post_init__(self) -> None:
        matrix = self.matrix.tensor.double()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a rotation's matrix must be square, got {tuple(matrix.shape)}")
        off = (matrix @ matrix.T - torch.eye(len(matrix), dtype=matrix.dtype)).abs().max().item()
        if not off < ORTHONORMAL:
            raise ValueError(f"a rotation's matrix must be orthonormal; it is off by {off:.2g}")

    @property
    def channels(self) -> int:
        return len(self.matrix.tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.tensor.to(x)

    def back(self, y: Tensor) -> Tensor:
        return y @ self.matrix.tensor.to(y).T


@dataclass(frozen=True)
class Permutation(Orthonormal):
    """Channel ``order[i]`` becomes channel i.

    Raises ValueError unless ``order`` names every channel once.
    """

    order: FrozenTensor

    kind: ClassVar[str] = "permutation"

    def __post_init__(self) -> None:
        order = self.order.tensor
        if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError("the order of a permutation must name every channel once")

    @property
    def channels(self) -> int:
        return len(self.order)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.order.tensor.to(x.device))

    def back(self, y: Tensor) -> Tensor:
        return y.index_select(-1, self.order.tensor.argsort().to(y.device))


KINDS: dict[str, type[Basis]] = {basis.kind: basis for basis in (Diagonal, Hadamard, Orthogonal, Permutation)}
