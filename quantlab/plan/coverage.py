"""Coverage: how many levels of its grid a tensor uses, and which share of it is clipped or becomes zero."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.grid import AffineGrid
from quantlab.quant.sketch import Sketch
from quantlab.quant.split import Rest

BULK = (0.0001, 0.9999)  # quantiles: the bulk is all elements but the outliers
SAMPLE = 1 << 16  # elements drawn from a weight: about six lie beyond each end of the bulk
RESOLUTION = 0.004  # relative, of a sketch's values: they are midpoints of buckets

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How one tensor lies on its grid. Shares are of the tensor's elements, between 0 and 1."""

    name: str
    weight: bool
    levels: int  # of the grid
    used: int | None  # levels between the ends of the bulk; None if groups have their own ranges
    outside: float  # clipped: beyond the range by more than rounding
    zeroed: float  # rounded to zero, as a share of the elements that are not zero
    cut: float  # on the side of zero that the range does not reach


def site_coverage(item: ActivationQuant, sketch: Sketch) -> Coverage | None:
    """A site's coverage, from its sketch. None without one integer grid, or if all elements are zero.

    A sketch has one histogram for all channels. If groups have their own ranges, the shares are those of the
    widest range, so ``outside`` is a lower bound and ``zeroed`` an upper bound.
    """
    if not isinstance(item.grid, AffineGrid) or isinstance(item.split, Rest) or sketch.count == 0:
        return None
    lo, hi = (min(item.lo),), (max(item.hi),)
    scale, zero_point = _numbers(*replace(item, lo=lo, hi=hi).parameters())
    values, counts = sketch.values()
    covered = _coverage(item.site, item.grid, values, counts, scale, zero_point, _left_out(item.grid, lo, hi))
    return covered if covered is None or len(item.lo) == 1 else replace(covered, used=None)


def weight_coverage(item: WeightQuant, value: Tensor) -> Coverage | None:
    """A weight's coverage, from a seeded sample of its elements. None as in :func:`site_coverage`.

    ``value`` is in the basis that the weight is quantized in.
    """
    if not isinstance(item.grid, AffineGrid):
        return None
    shaped = item.shaped(value.cpu())
    scale, zero_point = (
        part.expand(shaped.shape) if part.numel() > 1 else part for part in item.parameters(shaped)
    )
    drawn = _draw(value.numel())
    x = shaped.reshape(-1)[drawn].double().numpy()
    if scale.numel() > 1:
        places = np.unravel_index(drawn, shaped.shape)
        scale, zero_point = scale[places], zero_point[places]
    numbers = _numbers(scale, zero_point)
    left_out = _left_out(item.grid, item.lo, item.hi)
    covered = _coverage(item.parameter, item.grid, x, None, *numbers, left_out)
    return covered and replace(covered, weight=True)


def with_coverage(sites: pd.DataFrame, coverages: Sequence[Coverage]) -> pd.DataFrame:
    """The table of sites with three more columns: the grid's levels, the levels used, and the share zeroed.

    Cells are empty without an integer grid; ``levels_used`` also if groups have their own ranges.
    """
    columns = pd.DataFrame(
        [(item.name, item.levels, item.used, item.zeroed) for item in coverages],
        columns=["name", "levels", "levels_used", "zeroed"],
    )
    return sites.merge(columns, on="name", how="left", validate="one_to_one") if len(sites) else sites


def _numbers(scale: Tensor, zero_point: Tensor) -> tuple[Array, Array]:
    return scale.flatten().double().numpy(), zero_point.flatten().double().numpy()


def _draw(elements: int) -> NDArray[np.int64]:
    """The indices of the sampled elements: all if there are at most :data:`SAMPLE`."""
    if elements <= SAMPLE:
        return np.arange(elements)
    return np.random.default_rng(0).integers(0, elements, SAMPLE)


def _left_out(grid: AffineGrid, lo: Iterable[float], hi: Iterable[float]) -> int:
    """The sign of the side of zero that no range reaches; 0 if ranges reach both sides."""
    if grid.symmetric:
        return 0
    return -1 if min(lo) >= 0 else 1 if max(hi) <= 0 else 0


def _coverage(
    name: str,
    grid: AffineGrid,
    x: Array,
    counts: Array | None,
    scale: Array,
    zero_point: Array,
    left_out: int,
) -> Coverage | None:
    """The coverage of values ``x`` that occur ``counts`` times each; None: once each."""
    nonzero = x != 0
    if not nonzero.any():
        return None
    steps = x / scale
    q = np.clip(np.round(steps) + zero_point, grid.q_min, grid.q_max)
    beyond = np.abs(steps + zero_point - q) > 0.5 + RESOLUTION * np.abs(steps)
    low, high = np.quantile(q, BULK, method="inverted_cdf", weights=counts)
    weighed = np.ones(len(x)) if counts is None else counts
    return Coverage(
        name=name,
        weight=False,
        levels=grid.q_max - grid.q_min + 1,
        used=int(high - low) + 1,
        outside=float(weighed[beyond].sum() / weighed.sum()),
        zeroed=float(weighed[nonzero & (q == zero_point)].sum() / weighed[nonzero].sum()),
        cut=float(weighed[x * left_out > 0].sum() / weighed.sum()),
    )
