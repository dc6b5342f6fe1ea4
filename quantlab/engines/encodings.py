"""The integers of a quantized tensor, as a site's quantizer hands them to the Linears that read it.

Each kind knows its product with a Linear's integer weight. All are exact up to the rounding of FP32 numbers
after the sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from quantlab.kernels.products import IntegerTensor, IntegerWeight, Product
from quantlab.kernels.tokens import TokenIntegers
from quantlab.quant.split import FP16

Groups = tuple[int, ...]  # the group index of each channel; empty: one group


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedWeight:
    """A Linear's integer weight, prepared for one grouping of its inputs."""

    products: Sequence[Product]  # one a group
    weight: IntegerWeight
    original: Callable[[], Tensor] | None = None  # before it was quantized, (outputs, inputs)

    @cached_property
    def row_sums(self) -> Tensor:
        """The sum of each row's values, FP32, shape (outputs,)."""
        whole = self.weight.integers.sum(1, dtype=torch.int32)
        return self.weight.scale * (whole - self.weight.zero_point * self.weight.integers.shape[1])


class Integers(ABC):
    """The integers of one tensor, (..., inputs)."""

    groups: Groups = ()
    how: ClassVar[str] = ""  # what is special about the product, after the kernel's name

    @abstractmethod
    def multiply(self, by: PreparedWeight, bias: Tensor | None) -> Tensor:
        """The product with a weight, and the bias added: (..., inputs) -> (..., outputs), FP32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ByGroup(Integers):
    """A static scale and zero point for each group of channels: one product a group."""

    parts: Sequence[IntegerTensor]
    groups: Groups = ()

    def multiply(self, by: PreparedWeight, bias: Tensor | None) -> Tensor:
        first, *others = by.products
        y = first(self.parts[0], bias)
        for product, part in zip(others, self.parts[1:], strict=True):
            y += product(part, None)
        return y


@dataclass(frozen=True, kw_only=True, eq=False)
class ByToken(Integers):
    """A scale and a zero point for each token: a product with scale 1, then times the token's scale.

    ``y = s_t (sum (q - m) w - (z_t - m) sum w) + b`` for any whole number m. A symmetric grid's zero point is
    ``middle``, so the second sum is zero; an asymmetric grid's are around it, so the second sum is small.
    """

    how = " per token"

    tokens: TokenIntegers
    symmetric: bool
    middle: int

    def multiply(self, by: PreparedWeight, bias: Tensor | None) -> Tensor:
        (product,) = by.products
        scale = self.tokens.scale
        y = product(IntegerTensor(integers=self.tokens.integers, scale=1.0, zero_point=self.middle), None)
        if not self.symmetric:
            y.addcmul_(self.tokens.zero_point - self.middle, by.row_sums, value=-1)
        return y.mul_(scale) if bias is None else torch.addcmul(bias, y, scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoGrids(Integers):
    """The integers on a narrow grid, and those of the rest on a coarse one: two products of one weight."""

    how = ", twice"

    narrow: IntegerTensor
    rest: IntegerTensor | None  # None if all of it is zero

    def multiply(self, by: PreparedWeight, bias: Tensor | None) -> Tensor:
        (product,) = by.products
        y = product(self.narrow, bias)
        return y if self.rest is None else y.add_(product(self.rest, None))


@dataclass(frozen=True, kw_only=True, eq=False)
class WithWideColumns(Integers):
    """Integers whose wide columns stand for zero, and the values of these columns, (..., columns).

    The wide columns multiply the weight's own columns, rounded to FP16, in FP32.
    """

    narrow: Integers
    columns: Tensor  # long, (columns,)
    values: Tensor

    @property
    def groups(self) -> Groups:  # type: ignore[override]
        return self.narrow.groups

    @property
    def how(self) -> str:  # type: ignore[override]
        return f"{self.narrow.how}, wide columns in fp32"

    def multiply(self, by: PreparedWeight, bias: Tensor | None) -> Tensor:
        assert by.original is not None
        y = self.narrow.multiply(by, bias)
        return y.add_(linear(self.values, wide_weight(by.original(), self.columns)))


def wide_weight(original: Tensor, columns: Tensor) -> Tensor:
    """A weight's columns in FP16, as FP32: (outputs, inputs) -> (outputs, columns)."""
    return FP16.snap(original.index_select(1, columns))


def channels_by_group(groups: Groups) -> list[Tensor]:
    """The channels of each group; empty without groups."""
    index = torch.tensor(groups)
    return [(index == group).nonzero().flatten() for group in range(max(groups, default=-1) + 1)]
