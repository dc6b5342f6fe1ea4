"""Range estimators: which part of a tensor's values a grid covers.

Each estimator maps a sketch to ``(lo, hi)`` for the whole tensor. Groups of channels get this range cut to
their own extremes (:func:`group_ranges`). That is exact for min-max; the other estimators clip each group as
they clip the tensor.
"""

from collections.abc import Callable

import numpy as np
import scipy
import torch
from torch import Tensor

from quantlab.quant.granularity import Granularity, group_extremes
from quantlab.quant.grid import AffineGrid
from quantlab.quant.sketch import Array, Sketch

Range = tuple[float, float]

SHRINKS = np.geomspace(1, 1 / 256, 49)  # factors tried on a range's ends before the best is refined
# A histogram bucket may be as wide as an 8-bit step. So its elements are spread over four points inside it.
SUBPOINTS = np.array([-0.375, -0.125, 0.125, 0.375]) * 2.0**-7


def minmax(sketch: Sketch) -> Range:
    """The extremes of all elements."""
    return sketch.min.min().item(), sketch.max.max().item()


def running_minmax(sketch: Sketch, momentum: float) -> Range:
    """Exponential moving average of the batches' extremes, ``r <- momentum r + (1 - momentum) r_batch``.

    It starts from the first batch's extremes (Bondarenko et al. 2021, section 2; also used in arXiv
    2603.04308).
    """
    running = np.array(sketch.batch_extremes[0])
    for extremes in sketch.batch_extremes[1:]:
        running = momentum * running + (1 - momentum) * np.array(extremes)
    return float(running[0]), float(running[1])


def percentile(sketch: Sketch, p: float, symmetric: bool) -> Range:
    """The (100 - p)-th and p-th percentiles of x; for a symmetric grid, minus and plus the p-th of
    ``|x|``."""
    if symmetric:
        bound = sketch.magnitude_percentile(p)
        return -bound, bound
    return sketch.percentile(100 - p), sketch.percentile(p)


def published_percentile(sketch: Sketch, p: float) -> Range:
    """The one-sided percentile of arXiv 2603.04308, for reproducing its numbers only.

    The range is from the p-th percentile to the maximum, and its lower end is then clamped to at most zero.
    It cuts off all negative numbers, whatever p is.
    """
    return min(sketch.percentile(p), 0.0), max(sketch.max.max().item(), 0.0)


def mse(sketch: Sketch, grid: AffineGrid) -> Range:
    """The range inside min-max that minimizes ``sum (x - Q(x))^2`` over the sketch's histogram on ``grid``.

    First shrinks both ends by one factor, then each end alone. Every search tries :data:`SHRINKS` and refines
    the best.
    """
    values, counts = sketch.values()
    points = (values[:, None] * (1 + SUBPOINTS)).ravel()
    weights = np.repeat(counts, len(SUBPOINTS))
    lo, hi = min(sketch.min.min().item(), 0.0), max(sketch.max.max().item(), 0.0)

    def error(lo: float, hi: float) -> float:
        return float(weights @ (points - _snap(points, lo, hi, grid)) ** 2)

    shrink = _best_shrink(lambda a: error(a * lo, a * hi))
    lo, hi = shrink * lo, shrink * hi
    if not grid.symmetric:
        lo *= _best_shrink(lambda a: error(a * lo, hi))
        hi *= _best_shrink(lambda a: error(lo, a * hi))
    return lo, hi


def group_ranges(
    tensor_range: Range, sketch: Sketch, granularity: Granularity
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensor's range cut to each group's extremes: ``lo`` and ``hi``, shape (groups,), and the group
    index of every channel, shape (channels,)."""
    groups = granularity.assign(sketch.min, sketch.max)
    lo, hi = group_extremes(sketch.min, sketch.max, groups)
    return lo.clamp(min=tensor_range[0]), hi.clamp(max=tensor_range[1]), groups


def weight_range(weight: Tensor, grid: AffineGrid, estimator: str, axis: int | None) -> tuple[Tensor, Tensor]:
    """``lo`` and ``hi`` of a weight: one range if ``axis`` is None, else one for each slice along the axis.

    ``estimator`` is ``"minmax"`` or ``"mse"``. MSE measures the error on the weights themselves for slices,
    and on their histogram for a whole tensor.
    """
    rows = weight.flatten()[None] if axis is None else weight.movedim(axis, 0).flatten(1)
    lo, hi = torch.aminmax(rows, dim=1)
    if estimator == "minmax":
        return lo, hi
    if axis is None:
        sketch = Sketch(channels=1)
        sketch.update(rows.T)
        ends = mse(sketch, grid)
        return torch.tensor([ends[0]]), torch.tensor([ends[1]])
    return _mse_of_rows(rows, lo, hi, grid)


def _mse_of_rows(rows: Tensor, lo: Tensor, hi: Tensor, grid: AffineGrid) -> tuple[Tensor, Tensor]:
    """Each row's range, shrunk by the factor of :data:`SHRINKS` with the least squared error."""
    shrinks = torch.from_numpy(SHRINKS).float()
    errors = []
    for shrink in shrinks:
        scale, zero_point = grid.parameters(shrink * lo, shrink * hi)
        errors.append((grid.snap(rows, scale[:, None], zero_point[:, None]) - rows).square_().sum(1))
    best = shrinks[torch.stack(errors).argmin(0)]
    return best * lo, best * hi


def _snap(x: Array, lo: float, hi: float, grid: AffineGrid) -> Array:
    """:meth:`AffineGrid.snap` in float64, for estimates of errors only."""
    scale, zero_point = (float(part) for part in grid.parameters(torch.tensor(lo), torch.tensor(hi)))
    return (np.clip(np.rint(x / scale) + zero_point, grid.q_min, grid.q_max) - zero_point) * scale


def _best_shrink(error: Callable[[float], float]) -> float:
    """The factor in [1/256, 1] with the least error: the best of :data:`SHRINKS`, refined between its
    neighbours."""
    errors = [error(shrink) for shrink in SHRINKS]
    best = int(np.argmin(errors))
    upper, lower = SHRINKS[max(best - 1, 0)], SHRINKS[min(best + 1, len(SHRINKS) - 1)]
    refined = scipy.optimize.minimize_scalar(
        error, bounds=(lower, upper), method="bounded", options={"maxiter": 12}
    )
    return float(refined.x) if refined.fun < errors[best] else float(SHRINKS[best])
