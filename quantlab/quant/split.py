"""Splits as values: what a site's quantizer keeps wide beside its narrow grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantlab.quant.grid import AffineGrid, FloatGrid
from quantlab.quant.splits import columns_beyond, snap_residual

FP16 = FloatGrid(format="fp16")
Function = Callable[[Tensor], Tensor]
Static = tuple[AffineGrid, Tensor, Tensor]  # a grid, its scale and its zero point


@dataclass(frozen=True, kw_only=True)
class Split(ABC):
    """A split of one site's tensor, (..., channels), in the site's basis."""

    kind: ClassVar[str]  # its name in JSON
    by_batch: ClassVar[bool] = False  # whether the wide columns depend on the values of each batch

    @property
    def columns(self) -> tuple[int, ...]:
        """The columns that the weights keep in FP16, too."""
        return ()

    def narrow(self, x: Tensor) -> Tensor:
        """The tensor as the narrow grid sees it."""
        return x

    def narrowed(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The ranges of the narrow grid, from those that calibration found without the split."""
        return lo, hi

    @abstractmethod
    def function(self, narrow: Function, static: Static | None) -> Function:
        """The quantizer with the split, from the function of the narrow grid.

        ``static``: the narrow grid with its scale and zero point, if they are fixed.
        """


class WideColumns(Split):
    """Whole columns are kept wide; on the narrow grid they are zero."""

    @abstractmethod
    def wide(self, x: Tensor) -> Tensor:
        """The indices of the wide columns of a tensor, ascending."""

    def keep(self, x: Tensor) -> Tensor:
        """The wide columns' values as they are kept."""
        return FP16.snap(x)

    def narrow(self, x: Tensor) -> Tensor:
        return x.index_fill(-1, self.wide(x), 0)

    def function(self, narrow: Function, static: Static | None) -> Function:
        def split(x: Tensor) -> Tensor:
            wide = self.wide(x)
            if not len(wide):
                return narrow(x)
            kept = self.keep(x.index_select(-1, wide))
            return narrow(x.index_fill(-1, wide, 0)).index_copy(-1, wide, kept)

        return split


@dataclass(frozen=True, kw_only=True)
class Columns(WideColumns):
    """The same columns for every batch, in FP16, or with ``lo`` and ``hi`` on an 8-bit grid of their own."""

    kind = "columns"

    channels: tuple[int, ...]
    lo: float | None = None
    hi: float | None = None

    @property
    def columns(self) -> tuple[int, ...]:
        return self.channels

    def wide(self, x: Tensor) -> Tensor:
        return torch.tensor(self.channels, dtype=torch.long, device=x.device)

    def keep(self, x: Tensor) -> Tensor:
        if self.lo is None or self.hi is None:
            return super().keep(x)
        grid = AffineGrid(bits=8, symmetric=False)
        scale, zero_point = grid.parameters(torch.tensor(self.lo), torch.tensor(self.hi))
        return grid.snap(x, scale.to(x.device), zero_point.to(x.device))

    def __str__(self) -> str:
        return f"{len(self.channels)} columns in {'fp16' if self.lo is None else 'int8'}"


@dataclass(frozen=True, kw_only=True)
class Threshold(WideColumns):
    """The columns in which any element of the batch, padding included, reaches the threshold, in FP16."""

    kind = "threshold"
    by_batch = True

    threshold: float

    def wide(self, x: Tensor) -> Tensor:
        return columns_beyond(x, self.threshold).nonzero().flatten()

    def __str__(self) -> str:
        return f"columns from {self.threshold:g} in fp16"


@dataclass(frozen=True, kw_only=True)
class Rest(Split):
    """What lies beyond the narrow range ``lo`` to ``hi`` is on a second, symmetric grid of ``bits`` bits,
    whose scale is ``2^exponent`` times the first one's."""

    kind = "rest"

    lo: float
    hi: float
    exponent: int
    bits: int

    def narrowed(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        if len(lo) > 1:
            raise ValueError("split=outlier_residual needs one range a site: it goes with no groups")
        return torch.tensor([self.lo]), torch.tensor([self.hi])

    def function(self, narrow: Function, static: Static | None) -> Function:
        assert static is not None
        grid, scale, zero_point = static
        return lambda x: snap_residual(x, grid, scale, zero_point, self.exponent, self.bits)

    def __str__(self) -> str:
        return f"the rest in {self.bits} bits of 2^{self.exponent} steps"


SPLITS: dict[str, type[Split]] = {split.kind: split for split in (Columns, Threshold, Rest)}
