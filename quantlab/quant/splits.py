"""Splits: what of a tensor is kept wide beside its narrow grid."""

import math

import numpy as np
import torch
from torch import Tensor

from quantlab.quant.grid import AffineGrid
from quantlab.quant.ranges import SHRINKS, SUBPOINTS, Range
from quantlab.quant.sketch import Array, Sketch

MOST_EXPONENT = 15  # q + 2^15 q_rest is a whole number that FP32 holds exactly for up to 8 bits


def columns_beyond(x: Tensor, threshold: float) -> Tensor:
    """Whether any element of a column reaches the threshold: (..., channels) -> bool (channels,).

    Dettmers et al. 2022 (arXiv 2208.07339), section 3.2: ``|x| >= 6`` makes an outlier column.
    """
    return (x.abs() >= threshold).flatten(0, -2).any(0)


def channels_beyond(magnitudes: Array, threshold: float) -> tuple[int, ...]:
    """The channels whose largest magnitude reaches the threshold, ascending."""
    return tuple(np.flatnonzero(magnitudes >= threshold).tolist())


def top_channels(magnitudes: Array, k: int) -> tuple[int, ...]:
    """The ``k`` channels of the largest magnitudes, ascending. Of equal ones the first count."""
    return tuple(sorted(np.argsort(-magnitudes, kind="stable")[:k].tolist()))


def residual_integers(
    x: Tensor, grid: AffineGrid, scale: Tensor, zero_point: Tensor, exponent: int, bits: int
) -> tuple[Tensor, Tensor]:
    """The integers of ``x`` on its narrow grid, and those of the rest on a grid of scale ``2^exponent s``.

    Both are whole numbers in FP32; the value is ``s (q - z + 2^exponent q_rest)``. The rest has ``bits`` bits
    and is symmetric. It is zero unless ``x`` lies beyond the narrow range by over half a coarse step.
    """
    steps = x * scale.reciprocal()
    q = grid.integers(x, scale, zero_point)
    most = AffineGrid(bits=bits, symmetric=True).q_max
    rest = (steps - (q - zero_point)).mul_(2.0**-exponent).round_().clamp_(-most, most)
    return q, rest


def snap_residual(
    x: Tensor, grid: AffineGrid, scale: Tensor, zero_point: Tensor, exponent: int, bits: int
) -> Tensor:
    """The values that :func:`residual_integers` stand for."""
    q, rest = residual_integers(x, grid, scale, zero_point, exponent, bits)
    return rest.mul_(2.0**exponent).add_(q - zero_point).mul_(scale)


def fit_residual(sketch: Sketch, grid: AffineGrid, bits: int) -> tuple[Range, int]:
    """The narrow range and the exponent with the least squared error over the sketch's histogram.

    Tries the factors :data:`SHRINKS` on the extremes. The exponent is the least whose coarse grid reaches
    them. Factor 1 leaves no rest.
    """
    values, counts = sketch.values()
    points = (values[:, None] * (1 + SUBPOINTS)).ravel()
    weights = np.repeat(counts, len(SUBPOINTS))
    ends = min(sketch.min.min().item(), 0.0), max(sketch.max.max().item(), 0.0)

    def tried(shrink: float) -> tuple[float, Range, int]:
        lo, hi = shrink * ends[0], shrink * ends[1]
        scale, zero_point = (part.double() for part in grid.parameters(torch.tensor(lo), torch.tensor(hi)))
        exponent = _least_exponent(max(ends[1] - hi, lo - ends[0]) / float(scale), bits)
        snapped = snap_residual(torch.from_numpy(points), grid, scale, zero_point, exponent, bits)
        return float(weights @ (points - snapped.numpy()) ** 2), (lo, hi), exponent

    _, narrow, exponent = min((tried(float(shrink)) for shrink in SHRINKS), key=lambda one: one[0])
    return narrow, exponent


def _least_exponent(steps: float, bits: int) -> int:
    """The least exponent whose coarse grid reaches so many steps of the narrow one."""
    reach = steps / AffineGrid(bits=bits, symmetric=True).q_max
    return min(max(math.ceil(math.log2(reach)), 0), MOST_EXPONENT) if reach > 0 else 0
