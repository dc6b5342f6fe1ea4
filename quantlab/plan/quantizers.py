"""The quantizers of a plan: which grid, with which ranges, a site or a parameter gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantlab.kernels.snapper import Snapper
from quantlab.network.taps import Tap
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid, Grid
from quantlab.quant.split import FP16, Split, Static

Ranges = tuple[float, ...] | FrozenTensor


@dataclass(frozen=True, kw_only=True)
class ActivationQuant:
    """The quantizer of a site: its grid, and the ranges ``lo`` and ``hi`` of a grid that needs them.

    ``groups`` holds every channel's index into the ranges; empty: all channels share one range. ``split``
    keeps part of the tensor wide beside the grid. ``group_bits`` are each group's bits, instead of the
    grid's.
    """

    site: str
    tap: Tap
    grid: Grid
    lo: tuple[float, ...] = ()
    hi: tuple[float, ...] = ()
    groups: tuple[int, ...] = ()
    split: Split | None = None
    group_bits: tuple[int, ...] = ()

    def grids(self) -> list[AffineGrid]:
        """The grid of each range, or one for all. Raises TypeError for a grid without ranges."""
        grid = _affine(self.grid)
        return [replace(grid, bits=bits) for bits in self.group_bits] or [grid]

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each range, shape (ranges,). Raises TypeError for a grid without ranges."""
        grids, lo, hi = self.grids(), torch.tensor(self.lo), torch.tensor(self.hi)
        if len(grids) == 1:
            return grids[0].parameters(lo, hi)
        found = [grid.parameters(lo[i : i + 1], hi[i : i + 1]) for i, grid in enumerate(grids)]
        scale, zero_point = zip(*found, strict=True)
        return torch.cat(scale), torch.cat(zero_point)

    def function(self, device: torch.device, overwrite: bool = False) -> Callable[[Tensor], Tensor]:
        """Quantizes and dequantizes the site's tensor; in place if ``overwrite`` is set and the grid can."""
        if self.split is None:
            return self.narrow_function(device, overwrite)
        static: Static | None = None
        if self.grid.ranged:
            scale, zero_point = self.parameters()
            static = _affine(self.grid), scale.to(device), zero_point.to(device)
        return self.split.function(self.narrow_function(device, overwrite), static)

    def narrow_function(self, device: torch.device, overwrite: bool = False) -> Callable[[Tensor], Tensor]:
        """:meth:`function` without the split."""
        if not self.grid.ranged:
            return self.grid.function(None, None, overwrite)
        scale, zero_point = self.parameters()
        if self.groups:
            groups = torch.tensor(self.groups)
            after = [1] * (-1 - self.tap.axis)  # the dimensions after the channels'
            scale, zero_point = (one[groups].reshape(-1, *after) for one in (scale, zero_point))
        if self.group_bits:
            ends = [torch.tensor([(g.q_min, g.q_max) for g in self.grids()])[groups, i] for i in (0, 1)]
            q_min, q_max = (end.reshape(scale.shape).to(device, scale.dtype) for end in ends)
            return Snapper(scale.to(device), zero_point.to(device), q_min, q_max, overwrite)
        return self.grid.function(scale.to(device), zero_point.to(device), overwrite)


@dataclass(frozen=True, kw_only=True)
class WeightQuant:
    """The quantizer of a parameter, with one range (``axis`` None) or one for each slice along ``axis``.

    ``group``: each row has a range for every so many inputs; ``lo`` and ``hi`` are (rows, inputs / group)
    then. ``integers`` stand for the weight, of its shape, in the grid's own numbers; None: each weight is
    rounded to the nearest. The columns ``wide`` stay in FP16.
    """

    parameter: str
    grid: Grid
    axis: int | None
    lo: Ranges = ()
    hi: Ranges = ()
    group: int | None = None
    integers: FrozenTensor | None = None
    wide: tuple[int, ...] = ()

    def parameters(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each range, on the parameter's device; they broadcast against
        :meth:`shaped`.

        Raises TypeError for a grid without ranges.
        """
        lo, hi = weight_ranges(self, value.ndim)
        return _affine(self.grid).parameters(lo.to(value.device), hi.to(value.device))

    def shaped(self, value: Tensor) -> Tensor:
        """The parameter as the ranges see it: with groups as (rows, inputs / group, group)."""
        return value if self.group is None else value.reshape(len(value), -1, self.group)

    def rounded(self, value: Tensor) -> Tensor:
        """The integers that stand for the parameter, as whole numbers in FP32, of its shape."""
        if self.integers is not None:
            return self.integers.tensor.to(value)
        scale, zero_point = self.parameters(value)
        return _affine(self.grid).integers(self.shaped(value), scale, zero_point).reshape(value.shape)

    def snap(self, value: Tensor) -> Tensor:
        """The parameter, quantized and dequantized."""
        if not self.grid.ranged:
            return self.grid.function(None, None, False)(value)
        scale, zero_point = self.parameters(value)
        if self.integers is None:
            snapped = self.grid.function(scale, zero_point, False)(self.shaped(value)).reshape(value.shape)
        else:
            snapped = ((self.shaped(self.rounded(value)) - zero_point) * scale).reshape(value.shape)
        if self.wide:
            snapped[:, list(self.wide)] = FP16.snap(value[:, list(self.wide)])
        return snapped


def weight_ranges(weight: WeightQuant, ndim: int) -> tuple[Tensor, Tensor]:
    """``lo`` and ``hi`` shaped to broadcast against a parameter of ``ndim`` dimensions, or its groups."""
    if isinstance(weight.lo, FrozenTensor) and isinstance(weight.hi, FrozenTensor):
        lo, hi = weight.lo.tensor, weight.hi.tensor
    else:
        lo, hi = torch.tensor(tuple(weight.lo)), torch.tensor(tuple(weight.hi))
    if weight.group is not None:
        return lo[..., None], hi[..., None]
    shape = [1] * ndim
    if weight.axis is not None:
        shape[weight.axis] = -1
    return lo.reshape(shape), hi.reshape(shape)


def _affine(grid: Grid) -> AffineGrid:
    if not isinstance(grid, AffineGrid):
        raise TypeError(f"{grid} has no scale and zero point")
    return grid
