"""Groups of channels: any K partitions them evenly, and its ends are the two usual granularities."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import arrays, heavy_tailed, matrices, properties
from torch import Tensor

from quantlab.quant.granularity import Granularity, PerChannel, PerGroup, PerTensor, group_extremes
from quantlab.quant.grid import AffineGrid

GRID = AffineGrid(bits=8, symmetric=False)

permutes = st.sampled_from(["none", "range"])


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each column."""
    return x.amin(0), x.amax(0)


def quantized(x: Tensor, granularity: Granularity) -> Tensor:
    """``x`` (elements, channels) on :data:`GRID` with the granularity's ranges."""
    groups = granularity.assign(*extremes(x))
    scale, zero_point = GRID.parameters(*group_extremes(*extremes(x), groups))
    return GRID.snap(x, scale[groups], zero_point[groups])


@properties
@given(matrices(), permutes)
def test_one_group_is_per_tensor(x: Tensor, permute: str) -> None:
    one = PerGroup(k=1, permute=permute)
    assert torch.equal(one.assign(*extremes(x)), PerTensor().assign(*extremes(x)))
    assert torch.equal(quantized(x, one), GRID.snap(x, *GRID.parameters(x.min(), x.max())))


@properties
@given(matrices(), permutes)
def test_a_group_a_channel_is_per_channel(x: Tensor, permute: str) -> None:
    singles = PerGroup(k=x.shape[1], permute=permute)
    assert singles.assign(*extremes(x)).sort().values.equal(torch.arange(x.shape[1]))
    assert torch.equal(quantized(x, singles), quantized(x, PerChannel()))
    assert torch.equal(quantized(x, singles), GRID.snap(x, *GRID.parameters(*extremes(x))))


@properties
@given(arrays(most=60), permutes, st.data())
def test_sizes_differ_by_one_at_most(widths: Tensor, permute: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(widths)))
    groups = PerGroup(k=k, permute=permute).assign(torch.zeros(len(widths)), widths.abs())
    sizes = torch.bincount(groups, minlength=k)
    assert (len(groups), len(sizes), int(sizes.sum())) == (len(widths), k, len(widths))
    assert sizes.max() - sizes.min() <= 1


@properties
@given(matrices(columns=40), st.data())
def test_permuted_groups_are_ordered_by_range(x: Tensor, data: st.DataObject) -> None:
    lo, hi = extremes(x)
    k = data.draw(st.integers(1, x.shape[1]))
    groups = PerGroup(k=k).assign(lo, hi)
    widths = [(hi - lo)[groups == group] for group in range(k)]
    assert all(before.max() <= after.min() for before, after in pairwise(widths))


@properties
@given(arrays(most=60), st.data())
def test_unpermuted_groups_are_contiguous(widths: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(widths)))
    groups = PerGroup(k=k, permute="none").assign(torch.zeros(len(widths)), widths.abs())
    assert (groups.diff() >= 0).all()


@properties
@given(matrices(columns=20), st.data())
def test_sorting_back_and_forth_changes_nothing(x: Tensor, data: st.DataObject) -> None:
    """Groups as runtimes lay them out: channels sorted by group, quantized in contiguous blocks, and put
    back."""
    granularity = PerGroup(k=data.draw(st.integers(1, x.shape[1])))
    groups = granularity.assign(*extremes(x))
    order = groups.argsort(stable=True)
    blocks = [
        GRID.snap(block, *GRID.parameters(block.min(), block.max()))
        for block in x[:, order].split(torch.bincount(groups).tolist(), dim=1)
    ]
    assert torch.equal(torch.cat(blocks, dim=1)[:, order.argsort()], quantized(x, granularity))


@properties
@given(matrices(), st.data())
def test_group_extremes(x: Tensor, data: st.DataObject) -> None:
    granularity = PerGroup(k=data.draw(st.integers(1, x.shape[1])), permute=data.draw(permutes))
    groups = granularity.assign(*extremes(x))
    lo, hi = group_extremes(*extremes(x), groups)
    assert lo.tolist() == [x[:, groups == group].min().item() for group in range(granularity.k)]
    assert hi.tolist() == [x[:, groups == group].max().item() for group in range(granularity.k)]


def test_outliers_share_a_group() -> None:
    x = heavy_tailed(500, 12)
    x[:, [3, 7, 10]] *= 1000
    groups = PerGroup(k=4).assign(*extremes(x))
    assert groups[[3, 7, 10]].tolist() == [3, 3, 3]


def test_ties_keep_their_order() -> None:
    assert PerGroup(k=2).assign(torch.zeros(4), torch.ones(4)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "k, permute, message",
    [
        (0, "range", "k must be a whole number of at least 1, got 0"),
        (-3, "range", "k must be a whole number of at least 1, got -3"),
        (2.0, "range", "k must be a whole number of at least 1, got 2.0"),
        (True, "range", "k must be a whole number of at least 1, got True"),
        (2, "ranges", r"permute must be one of none, range; got 'ranges' \(did you mean 'range'"),
    ],
)
def test_bad_groups(k: int, permute: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerGroup(k=k, permute=permute)


def test_more_groups_than_channels() -> None:
    with pytest.raises(ValueError, match=r"k must be a whole number in 1\.\.4, got 5"):
        PerGroup(k=5).assign(torch.zeros(4), torch.ones(4))
