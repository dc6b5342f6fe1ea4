"""Data-driven groups against brute force, and bits against reverse water-filling."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import arrays, matrices, properties
from torch import Tensor

from quantlab.quant.granularity import Granularity, PerChannel, PerTensor, group_extremes
from quantlab.quant.grouping import KMeansGroups, OptimalGroups, allocate_bits


def cost(lo: Tensor, hi: Tensor, groups: Tensor) -> float:
    """``sum n_g r_g^2``."""
    low, high = group_extremes(lo.double(), hi.double(), groups)
    widths = high.clamp(min=0) - low.clamp(max=0)
    return float((torch.bincount(groups) * widths**2).sum())


def least_cost(lo: Tensor, hi: Tensor, k: int) -> float:
    """The least cost of all contiguous splits of the sorted channels."""
    order = torch.argsort(hi.clamp(min=0) - lo.clamp(max=0), stable=True)
    lo, hi = lo[order], hi[order]
    costs = []
    for cuts in combinations(range(1, len(lo)), k - 1):
        ends = (0, *cuts, len(lo))
        sizes = torch.tensor([b - a for a, b in pairwise(ends)])
        costs.append(cost(lo, hi, torch.repeat_interleave(sizes)))
    return min(costs)


@properties
@given(matrices(rows=2, columns=9, largest=1e15), st.data())
def test_the_optimal_split_is_that_of_brute_force(x: Tensor, data: st.DataObject) -> None:
    lo, hi = x.amin(0), x.amax(0)
    k = data.draw(st.integers(1, len(lo)))
    groups = OptimalGroups(k=k).assign(lo, hi)
    assert groups.unique().tolist() == list(range(k))
    assert cost(lo, hi, groups) == pytest.approx(least_cost(lo, hi, k), rel=1e-9)


@pytest.mark.parametrize("kind", [OptimalGroups, KMeansGroups])
def test_the_ends_are_per_tensor_and_per_channel(kind: type[OptimalGroups | KMeansGroups]) -> None:
    hi = torch.tensor([3.0, 1.0, 2.0, 7.0])
    lo = -hi.flip(0)
    assert torch.equal(kind(k=1).assign(lo, hi), PerTensor().assign(lo, hi))
    assert kind(k=4).assign(lo, hi).sort().values.equal(PerChannel().assign(lo, hi))


@pytest.mark.parametrize("granularity", [OptimalGroups(k=3), KMeansGroups(k=3)], ids=str)
def test_outliers_are_alone(granularity: Granularity) -> None:
    hi = torch.linspace(1, 2, 40)
    hi[[5, 17]] = torch.tensor([60.0, 61.0])
    hi[[30]] = 400.0
    groups = granularity.assign(-hi, hi)
    assert groups[5] == groups[17] and torch.bincount(groups).sort().values.tolist() == [1, 2, 37]


@properties
@given(matrices(rows=2, columns=12), st.integers(1, 12), st.integers(0, 3))
def test_k_means_is_the_same_each_time_and_has_no_empty_group(x: Tensor, k: int, seed: int) -> None:
    lo, hi = x.amin(0), x.amax(0)
    kind = KMeansGroups(k=min(k, len(lo)), seed=seed)
    groups = kind.assign(lo, hi)
    assert torch.equal(groups, kind.assign(lo, hi))
    assert groups.unique().tolist() == list(range(int(groups.max()) + 1)) and groups.max() < kind.k


def test_equal_groups_cost_no_less_than_optimal_ones() -> None:
    from quantlab.quant.granularity import PerGroup

    hi = torch.from_numpy(torch.randn(200, generator=torch.manual_seed(0)).exp().numpy())
    costs = [cost(-hi, hi, kind.assign(-hi, hi)) for kind in (OptimalGroups(k=6), PerGroup(k=6))]
    assert costs[0] < 0.8 * costs[1]


def test_more_groups_than_channels() -> None:
    for kind in (OptimalGroups(k=5), KMeansGroups(k=5)):
        with pytest.raises(ValueError, match=r"k must be a whole number in 1\.\.4, got 5"):
            kind.assign(torch.zeros(4), torch.ones(4))


def test_bits_follow_the_logarithm_of_the_range() -> None:
    """b_g = b + log2(r_g / geometric mean), where that is whole and within the limits."""
    assert allocate_bits(torch.tensor([0.25, 0.5, 2.0, 4.0]), torch.tensor([10, 10, 10, 10]), 4) == (
        2,
        3,
        5,
        6,
    )
    assert allocate_bits(torch.tensor([1.0, 1.0]), torch.tensor([5, 5]), 4) == (4, 4)


@properties
@given(arrays(most=6, largest=1e6), st.floats(2, 8), st.data())
def test_bits_keep_to_the_budget_and_the_limits(widths: Tensor, mean: float, data: st.DataObject) -> None:
    sizes = torch.tensor(data.draw(st.lists(st.integers(1, 50), min_size=len(widths), max_size=len(widths))))
    bits = allocate_bits(widths.abs(), sizes, mean)
    spent = float((torch.tensor(bits) * sizes).sum())
    assert min(bits) >= 2 and max(bits) <= 8 and spent <= mean * float(sizes.sum()) + 1e-6
    affordable = [size for size, b in zip(sizes.tolist(), bits, strict=True) if b < 8]
    assert all(spent + size > mean * float(sizes.sum()) - 1e-6 for size in affordable)


def test_a_budget_below_two_bits() -> None:
    with pytest.raises(ValueError, match=r"mean of the groups' bits must be at least 2, got 1.5"):
        allocate_bits(torch.ones(2), torch.ones(2), 1.5)
