"""Data-driven groups of channels, and how many bits each group gets."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.config.checks import whole
from quantlab.quant.granularity import Granularity

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class KMeansGroups(Granularity):
    """At most ``k`` groups of channels with alike extremes, by k-means on the points (max, min).

    RPTQ (arXiv 2304.01089), section 4. The best of 20 starts counts; ``seed`` draws them. There are fewer
    groups where fewer points differ.
    """

    k: int
    seed: int = 0

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        whole("seed", self.seed, 0)

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        from scipy.cluster.vq import kmeans, vq

        whole("k", self.k, 1, len(lo))
        points = torch.stack([hi, lo], dim=1).double().numpy()
        points = points / (np.abs(points).max() or 1.0)
        centres, _ = kmeans(points, self.k, iter=20, thresh=1e-9, rng=np.random.default_rng(self.seed))
        codes = np.unique(vq(points, centres)[0], return_inverse=True)[1]
        return torch.from_numpy(codes.astype(np.int64))

    def __str__(self) -> str:
        return f"{self.k} groups by k-means"


@dataclass(frozen=True, kw_only=True)
class OptimalGroups(Granularity):
    """The ``k`` groups, contiguous among the channels sorted by range, with the least expected error.

    Ranges include zero, as those of grids do. A group of n channels with a common range of width r has the
    error ``n r^2``, up to a factor that the bits decide. Dynamic programming finds the least sum in
    O(channels^2 k).
    """

    k: int

    def __post_init__(self) -> None:
        whole("k", self.k, 1)

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        whole("k", self.k, 1, len(lo))
        order = torch.argsort(hi.clamp(min=0) - lo.clamp(max=0), stable=True)
        ends = best_split(split_costs(lo[order].double().numpy(), hi[order].double().numpy()), self.k)
        groups = torch.empty(len(lo), dtype=torch.long)
        groups[order] = torch.repeat_interleave(torch.from_numpy(np.diff(ends, prepend=0)))
        return groups

    def __str__(self) -> str:
        return f"{self.k} optimal groups"


def split_costs(lo: Array, hi: Array) -> Array:
    """The cost ``n r^2`` of the group of channels i to j - 1, as element (i, j); infinite unless i < j."""
    count = len(lo)
    costs = np.full((count, count + 1), np.inf)
    for first in range(count):
        width = np.maximum.accumulate(np.maximum(hi[first:], 0)) - np.minimum.accumulate(
            np.minimum(lo[first:], 0)
        )
        costs[first, first + 1 :] = np.arange(1, count - first + 1) * width**2
    return costs


def best_split(costs: Array, k: int) -> NDArray[np.int64]:
    """The ends of the ``k`` contiguous groups whose costs have the least sum, ascending."""
    count = len(costs)
    best, cuts = costs[0], []
    for _ in range(k - 1):
        totals = best[:-1, None] + costs
        cuts.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    ends = [count]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    return np.array(ends[::-1])


def allocate_bits(
    ranges: Tensor, sizes: Tensor, mean_bits: float, least: int = 2, most: int = 8
) -> tuple[int, ...]:
    """Whole numbers of bits of groups whose mean over the channels is at most ``mean_bits``.

    ``ranges`` are the widths of the groups' ranges and ``sizes`` their numbers of channels, shape (groups,).
    Reverse water-filling: every further bit goes to the group whose step ``r_g 2^-b_g`` is the widest.
    Without the limits that is ``b_g = b + log2(r_g / geometric mean of r)``, rounded. Raises ValueError if
    the mean is below ``least``.
    """
    if mean_bits < least:
        raise ValueError(f"the mean of the groups' bits must be at least {least}, got {mean_bits}")
    widths, counts = ranges.double().tolist(), sizes.tolist()
    bits, left = [least] * len(widths), (mean_bits - least) * sum(counts)
    while True:
        fitting = [
            (widths[group] * 2.0 ** -bits[group], -group)
            for group in range(len(widths))
            if bits[group] < most and counts[group] <= left
        ]
        if not fitting:
            return tuple(bits)
        group = -max(fitting)[1]
        bits[group], left = bits[group] + 1, left - counts[group]
