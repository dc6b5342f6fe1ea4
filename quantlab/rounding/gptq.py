"""GPTQ: rounds a weight column by column, and lets the columns that follow make up for each one's error.

Frantar et al. 2022, arXiv 2210.17323, algorithm 1 and its authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.calibration.moments import Moments, moments
from quantlab.config.checks import above, one_of, whole
from quantlab.quant.grid import AffineGrid
from quantlab.rounding.in_order import InOrder, Rows


@dataclass(frozen=True, kw_only=True)
class Gptq(InOrder):
    """GPTQ, column by column (:func:`gptq`); fields as in its authors' code, ``damping`` is its percdamp.

    ``inputs``: ``quantized`` as in the paper, or ``fp32``.
    """

    inputs: str = "quantized"
    damping: float = 0.01
    block: int = 128
    act_order: bool = False

    def __post_init__(self) -> None:
        one_of("rounding.inputs", self.inputs, ("fp32", "quantized"))
        above("rounding.damping", self.damping, 0)
        whole("rounding.block", self.block, 1)
        one_of("rounding.act_order", self.act_order, (True, False))

    @property
    def behind_fp32(self) -> bool:
        return self.inputs == "fp32"

    def statistic(self, batch: int, *x: Tensor) -> Moments:
        return moments(*x)

    def rounder(self, seen: Moments) -> Callable[[Rows], Tensor]:
        shared = factor(seen.gram, self.damping, self.act_order)
        return lambda rows: gptq(
            rows.weight, seen.gram, shared, rows.scale, rows.zero_point, rows.grid, self.block
        )


@dataclass(frozen=True, eq=False)
class Factor:
    """The order in which columns are rounded, and how a column's error is passed on.

    ``order`` (channels,) are the columns. ``upper`` (channels, channels), float64, in that order, is the
    upper Cholesky factor U of the inverse of the inputs' second moments, ``H^-1 = U^T U``. All weights that
    read the same inputs share it.
    """

    order: Tensor
    upper: Tensor


def factor(gram: Tensor, damping: float = 0.01, act_order: bool = False) -> Factor:
    """The factor of ``gram`` = X^T X, (channels, channels), float64; any multiple of it has the same effect.

    ``damping`` times the mean of the diagonal is added to the diagonal, so that few rows of X suffice.
    ``act_order``: columns are rounded by descending diagonal instead of in their own order. A channel that
    is always zero gets a diagonal of 1. Raises ValueError if the damped matrix is not positive definite.
    """
    gram = gram.clone()
    diagonal = gram.diagonal()
    order = (
        torch.argsort(diagonal, descending=True, stable=True)
        if act_order
        else torch.arange(len(gram), device=gram.device)
    )
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(gram[order][:, order])
    if not failed:
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed:
        raise ValueError(f"the inputs' second moments have no inverse at a damping of {damping}: use more")
    return Factor(order, upper)


def round_by_columns(
    weight: Tensor, factor: Factor, scale: Tensor, zero_point: Tensor, grid: AffineGrid, block: int = 128
) -> Tensor:
    """The integers of a weight (outputs, channels), as whole numbers in FP32.

    ``scale`` and ``zero_point`` broadcast against the weight and stay as they are: groups of columns have
    the ranges of the original weight. The error of a column, ``(w - q) / U_ii``, times row i of U, is taken
    off the columns that follow: those of the block at once, the others after each ``block`` columns. A
    factor without correlations (U diagonal) rounds to nearest. A channel that is always zero is rounded to
    nearest too; the authors' code sets its weights to zero, for which a few rows are no proof.
    """
    order, upper = factor.order, factor.upper
    rest = weight.double()[:, order]
    scale, zero_point = (part.expand_as(weight)[:, order].T.contiguous() for part in (scale, zero_point))
    integers = torch.empty_like(weight.T)
    for start in range(0, len(order), block):
        stop = min(start + block, len(order))
        within, errors = (
            rest[:, start:stop].T.contiguous(),
            torch.empty(stop - start, len(weight), dtype=torch.float64, device=weight.device),
        )
        for i in range(stop - start):
            s, z = scale[start + i], zero_point[start + i]
            q = grid.integers(within[i].float(), s, z)
            integers[order[start + i]] = q
            row = upper[start + i, start + i : stop]
            errors[i] = (within[i] - (q - z).double() * s) / row[0]
            within[i:] -= row[:, None] * errors[i]
        rest[:, stop:] -= errors.T @ upper[start:stop, stop:]
    return integers.T.contiguous()


def gptq(
    weight: Tensor,
    gram: Tensor,
    factor: Factor,
    scale: Tensor,
    zero_point: Tensor,
    grid: AffineGrid,
    block: int = 128,
) -> Tensor:
    """:func:`round_by_columns`, but a row that changes its output more than the nearest integers do gets
    these.

    So no weight is worse than rounded to nearest on the rows of ``gram``. The authors' code has no such
    choice. It is needed where ranges are narrow: later columns that are clipped cannot make up for errors.
    """
    nearest = grid.integers(weight, scale, zero_point)
    rounded = round_by_columns(weight, factor, scale, zero_point, grid, block)
    before, after = (
        output_errors((q - zero_point) * scale - weight, gram)[:, None] for q in (nearest, rounded)
    )
    return torch.where(after < before, rounded, nearest)


def output_errors(error: Tensor, gram: Tensor) -> Tensor:
    """``sum (X e)^2`` of each row e of a weight's error (outputs, channels). ``gram`` is X^T X, float64."""
    errors: Tensor = ((error.double() @ gram) * error).sum(1)
    return errors
