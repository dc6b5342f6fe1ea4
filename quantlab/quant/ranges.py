"""Range estimators: what part of a tensor's values a grid shall cover.

Each takes a sketch and returns ``(lo, hi)`` for the whole tensor. Groups of channels get the part of it that
their own extremes reach (:func:`group_ranges`): exact for min-max, and for the others the site's clipping
within each group.
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

SHRINKS = np.geomspace(1, 1 / 256, 49)  # of a range's ends, tried before the best of them is refined
SUBPOINTS = (
    np.array([-0.375, -0.125, 0.125, 0.375]) * 2.0**-7
)  # a bucket is as wide as an 8-bit step: look inside


def minmax(sketch: Sketch) -> Range:
    """Everything that was seen."""
    return sketch.min.min().item(), sketch.max.max().item()


def running_minmax(sketch: Sketch, momentum: float) -> Range:
    """Exponential moving average of the batches' extremes: ``r <- momentum r + (1 - momentum) r_batch``, from
    the first batch's on (Bondarenko et al. 2021, section 2; the estimator of arXiv 2603.04308)."""
    running = np.array(sketch.batch_extremes[0])
    for extremes in sketch.batch_extremes[1:]:
        running = momentum * running + (1 - momentum) * np.array(extremes)
    return float(running[0]), float(running[1])


def percentile(sketch: Sketch, p: float, symmetric: bool) -> Range:
    """Two-sided: the (100 - p)-th and p-th percentiles; for a symmetric grid, plus and minus the p-th of
    ``|x|``."""
    if symmetric:
        bound = sketch.magnitude_percentile(p)
        return -bound, bound
    return sketch.percentile(100 - p), sketch.percentile(p)


def published_percentile(sketch: Sketch, p: float) -> Range:
    """One-sided, as published in arXiv 2603.04308: from the p-th percentile to the maximum, the lower end
    then clamped to zero. It cuts off every negative number, whatever p is; kept to reproduce those
    numbers."""
    return min(sketch.percentile(p), 0.0), max(sketch.max.max().item(), 0.0)


def mse(sketch: Sketch, grid: AffineGrid) -> Range:
    """The range inside min-max with the least squared error of the sketch's histogram on ``grid``.

    Both ends shrink together first, then each alone: every search tries geometric steps and refines the best.
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
    """``lo``, ``hi`` of every group, and every channel's group: the tensor's range, cut to the group's
    extremes."""
    groups = granularity.assign(sketch.min, sketch.max)
    lo, hi = group_extremes(sketch.min, sketch.max, groups)
    return lo.clamp(min=tensor_range[0]), hi.clamp(max=tensor_range[1]), groups


def weight_range(weight: Tensor, grid: AffineGrid, estimator: str, axis: int | None) -> tuple[Tensor, Tensor]:
    """Ranges of a weight matrix: shape (1,) where ``axis`` is None, else one for each slice along that axis.

    ``estimator`` is ``"minmax"`` or ``"mse"``; the latter looks at the true weights for slices and at their
    histogram for a whole tensor.
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
    """For each row the shrink of its range, of those in :data:`SHRINKS`, with the least squared error."""
    shrinks = torch.from_numpy(SHRINKS).float()
    errors = []
    for shrink in shrinks:
        scale, zero_point = grid.parameters(shrink * lo, shrink * hi)
        errors.append((grid.snap(rows, scale[:, None], zero_point[:, None]) - rows).square_().sum(1))
    best = shrinks[torch.stack(errors).argmin(0)]
    return best * lo, best * hi


def _snap(x: Array, lo: float, hi: float, grid: AffineGrid) -> Array:
    """:meth:`AffineGrid.snap` in float64, for error estimates only."""
    scale, zero_point = (float(part) for part in grid.parameters(torch.tensor(lo), torch.tensor(hi)))
    return (np.clip(np.rint(x / scale) + zero_point, grid.q_min, grid.q_max) - zero_point) * scale


def _best_shrink(error: Callable[[float], float]) -> float:
    errors = [error(shrink) for shrink in SHRINKS]
    best = int(np.argmin(errors))
    upper, lower = SHRINKS[max(best - 1, 0)], SHRINKS[min(best + 1, len(SHRINKS) - 1)]
    refined = scipy.optimize.minimize_scalar(
        error, bounds=(lower, upper), method="bounded", options={"maxiter": 12}
    )
    return float(refined.x) if refined.fun < errors[best] else float(SHRINKS[best])
