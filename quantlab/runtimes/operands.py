"""What a Linear multiplies in ONNX: the tensor that it reads, and its weight from stored integers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantlab.quant.dynamic import DynamicGrid


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWeight:
    """A Linear's weight as signed bytes, (inputs, outputs).

    ``axis`` is that of the scales: None for a single one, 1 for one an output, 0 for one every ``group``
    inputs, of shape (inputs / group, outputs). ``column_sums``: the sum of each output's integers, without
    zero points, FP32, (outputs,); None with groups. All are computed before a trace begins.

    ``fusible``: whether DequantizeLinear stands for scales of groups. ONNX Runtime 1.32 makes an integer
    product of it where the other operand has one too, and fails: such a product has no scales of groups.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    group: int | None
    column_sums: Tensor | None
    fusible: bool

    @classmethod
    def of(
        cls, q: Tensor, scale: Tensor, zero_point: Tensor, group: int | None, fusible: bool
    ) -> StoredWeight:
        """From integers (outputs, inputs) and their scales: of no dimension, (outputs,), or with groups
        (outputs, inputs / group)."""
        integers = q.t().contiguous()
        if group is not None:
            scale, zero_point = scale.t().contiguous(), zero_point.t().contiguous()
        axis = None if scale.ndim == 0 else 1 if group is None else 0
        sums = None if group is not None else (integers.int() - zero_point.int()).sum(0).float()
        return cls(
            integers=integers,
            scale=scale,
            zero_point=zero_point,
            axis=axis,
            group=group,
            column_sums=sums,
            fusible=fusible,
        )

    def values(self, channels: Tensor | None = None) -> Tensor:
        """The values, of some of the inputs if ``channels`` are given."""
        integers = self.integers if channels is None else self.integers[channels]
        if self.group is not None and not self.fusible:
            parts = integers.float().reshape(len(self.scale), self.group, -1)
            shifted = parts - self.zero_point.float().unsqueeze(1)
            return (shifted * self.scale.unsqueeze(1)).reshape(integers.shape)
        return dequantized(integers, self.scale, self.zero_point, self.axis, self.group)


class Operand(ABC):
    """A tensor on its grid."""

    @abstractmethod
    def values(self) -> Tensor:
        """What the integers stand for, in the tensor's shape."""

    @abstractmethod
    def product(self, weight: StoredWeight) -> Tensor:
        """The product with a weight: (..., inputs) -> (..., outputs)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Whole(Operand):
    """A tensor with one range, or one that is not quantized."""

    x: Tensor

    def values(self) -> Tensor:
        return self.x

    def product(self, weight: StoredWeight) -> Tensor:
        return _matmul(self.x, weight.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts(Operand):
    """A tensor in groups of channels along ``axis``, each with one range.

    A runtime's integer product has one scale for its whole input, so each group needs a product of its own.
    """

    channels: Sequence[Tensor]
    parts: Sequence[Tensor]
    axis: int
    back: Tensor  # where each channel is among the parts

    def values(self) -> Tensor:
        return torch.cat(list(self.parts), self.axis).index_select(self.axis, self.back)

    def product(self, weight: StoredWeight) -> Tensor:
        if weight.group is not None:  # no integer product: the ranges of its inputs differ
            return _matmul(self.values(), weight.values())
        first, *others = (
            _matmul(part, weight.values(channels))
            for channels, part in zip(self.channels, self.parts, strict=True)
        )
        return sum(others, first)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens(Operand):
    """A tensor with a grid for every token: ``s_t (q - z_t)``.

    ONNX's DynamicQuantizeLinear has one scale for the whole tensor. So the grids are computed with operators
    on floats, and MatMulInteger gets the bytes with one zero point m. The product is
    ``s_t s_w (sum (q - m) w - (z_t - m) sum w)``.
    """

    whole: Tensor  # q as whole numbers in FP32
    scale: Tensor
    zero_point: Tensor
    grid: DynamicGrid
    middle: Tensor  # m, one byte

    def values(self) -> Tensor:
        return (self.whole - self.zero_point) * self.scale

    def product(self, weight: StoredWeight) -> Tensor:
        if weight.column_sums is None:
            return _matmul(self.values(), weight.values())
        middle = self.grid.middle
        shift = middle if self.grid.symmetric else 0
        integers = (self.whole + shift).to(torch.uint8)
        y: Tensor = torch.onnx.ops.symbolic(
            "MatMulInteger",
            (integers, weight.integers, self.middle, weight.zero_point),
            dtype=torch.int32,
            shape=(*integers.shape[:-1], weight.integers.shape[1]),
        )
        y = y.float()
        if not self.grid.symmetric:
            y = y - (self.zero_point - middle) * weight.column_sums
        return y * self.scale * weight.scale


def tokens(grid: DynamicGrid) -> Callable[[Tensor], Tokens]:
    """Returns a function that puts a tensor on its tokens' grids."""
    middle = torch.tensor(grid.middle, dtype=torch.uint8)

    def quantize(x: Tensor) -> Tokens:
        scale, zero_point = grid.parameters(x)
        whole = grid.affine.integers(x, scale, zero_point)
        return Tokens(whole=whole, scale=scale, zero_point=zero_point, grid=grid, middle=middle)

    return quantize


def quantize_dequantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Writes QuantizeLinear and DequantizeLinear into the trace."""
    q = torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero_point), dtype=zero_point.dtype, shape=x.shape
    )
    return dequantized(q, scale, zero_point, None)


def dequantized(
    q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int | None = None
) -> Tensor:
    """Writes DequantizeLinear into the trace.

    ``axis`` is that of the scales; None for a single scale. ``group``: a scale is for so many elements of it.
    """
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    if group is not None:
        attributes["block_size"] = group
    y: Tensor = torch.onnx.ops.symbolic(
        "DequantizeLinear", (q, scale, zero_point), attributes, dtype=torch.float32, shape=q.shape
    )
    return y


def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    """A product. One of two dimensions would become a Gemm, which runs in integers only with an integer
    bias."""
    return torch.matmul(x.unsqueeze(1), weight).squeeze(1) if x.ndim == 2 else torch.matmul(x, weight)
