"""Range estimators against hand-computed and brute-force ranges of the data itself."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import arrays, heavy_tailed, matrices, properties, sketched
from torch import Tensor

from quantlab.quant import ranges
from quantlab.quant.granularity import PerChannel, PerGroup, PerTensor
from quantlab.quant.grid import AffineGrid

SYMMETRIC, ASYMMETRIC = AffineGrid(bits=8, symmetric=True), AffineGrid(bits=8, symmetric=False)


def squared_error(x: Tensor, lo: float, hi: float, grid: AffineGrid) -> float:
    """Of the elements themselves, not of their histogram."""
    scale, zero_point = grid.parameters(torch.tensor(lo), torch.tensor(hi))
    return (grid.snap(x, scale, zero_point).double() - x.double()).square().sum().item()


@properties
@given(matrices())
def test_minmax(x: Tensor) -> None:
    assert ranges.minmax(sketched(x)) == (x.min().item(), x.max().item())


def test_running_minmax_by_hand() -> None:
    batches = [torch.tensor([[-1.0, 4.0]]), torch.tensor([[-3.0, 2.0]]), torch.tensor([[-2.0, 8.0]])]
    # lo: -1, then .9 * -1 + .1 * -3 = -1.2, then .9 * -1.2 + .1 * -2 = -1.28; hi: 4, 3.8, 4.22
    assert ranges.running_minmax(sketched(*batches), momentum=0.9) == pytest.approx((-1.28, 4.22))
    assert ranges.running_minmax(sketched(*batches), momentum=0.0) == (-2.0, 8.0)
    assert ranges.running_minmax(sketched(*batches[:1]), momentum=0.9) == (-1.0, 4.0)


@pytest.mark.parametrize("p", [50.1, 75, 90, 99, 99.9, 99.99, 100])
def test_percentile(p: float) -> None:
    x = heavy_tailed(20_000, 3) + 0.5
    lo, hi = ranges.percentile(sketched(x), p, symmetric=False)
    expected = np.percentile(x.numpy(), [100 - p, p], method="inverted_cdf")
    assert (lo, hi) == pytest.approx(tuple(expected), rel=0.005)
    lo, hi = ranges.percentile(sketched(x), p, symmetric=True)
    assert lo == -hi
    assert hi == pytest.approx(np.percentile(np.abs(x.numpy()), p, method="inverted_cdf"), rel=0.005)


@properties
@given(matrices())
def test_percentile_100_is_minmax(x: Tensor) -> None:
    lo, hi = ranges.minmax(sketched(x))
    assert ranges.percentile(sketched(x), 100, symmetric=False) == (lo, hi)
    assert ranges.percentile(sketched(x), 100, symmetric=True) == (-max(-lo, hi), max(-lo, hi))


@pytest.mark.parametrize("p", [99.0, 99.5, 99.9, 99.99, 100])
def test_published_percentile_is_one_sided_whatever_p(p: float) -> None:
    x = heavy_tailed(5000, 4)
    lo, hi = ranges.published_percentile(sketched(x), p)
    assert (lo, hi) == (0.0, x.max().item())
    scale, zero_point = ASYMMETRIC.parameters(torch.tensor(lo), torch.tensor(hi))
    assert (ASYMMETRIC.snap(x, scale, zero_point)[x < 0] == 0).all()


def test_published_percentile_of_negative_data() -> None:
    x = -heavy_tailed(500, 2).abs() - 1
    lo, hi = ranges.published_percentile(sketched(x), 60)
    assert lo == pytest.approx(np.percentile(x.numpy(), 60, method="inverted_cdf"), rel=0.005)
    assert hi == 0


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "gaussian": lambda rng: rng.normal(size=20_000),
    "heavy-tailed": lambda rng: rng.standard_t(3, size=20_000),
    "shifted": lambda rng: rng.normal(size=20_000) + 1,
    "skewed": lambda rng: rng.exponential(size=20_000) - 0.2,
    "uniform": lambda rng: rng.uniform(-1, 2, size=20_000),
    "outlier": lambda rng: np.append(rng.normal(size=20_000), 60.0),
}


def brute_force(x: Tensor, grid: AffineGrid) -> float:
    """The least squared error of any range on a fine net of shrunken ones."""
    lo, hi = x.min().item(), x.max().item()
    steps = np.geomspace(1, 1 / 64, 32)
    ends = (
        [(-s, s) for s in max(-lo, hi) * steps]
        if grid.symmetric
        else [(a * lo, b * hi) for a in steps for b in steps]
    )
    return min(squared_error(x, low, high, grid) for low, high in ends)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_the_best_range(name: str, symmetric: bool, bits: int) -> None:
    x = torch.from_numpy(DISTRIBUTIONS[name](np.random.default_rng(0)).astype(np.float32))[::4, None]
    grid = AffineGrid(bits=bits, symmetric=symmetric)
    found = squared_error(x, *ranges.mse(sketched(x), grid), grid)
    assert found <= squared_error(x, x.min().item(), x.max().item(), grid)
    # Two ends are searched one after the other, which may stop in a local optimum: a few percent at 4 bits.
    assert found <= (1.01 if symmetric or bits == 8 else 1.05) * brute_force(x, grid)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "values", [(0.0, 0.0), (2.0, 2.0), (-1e-30, 1e-30), (0.0, 5.0), (-1e37, 1.0)], ids=str
)
def test_mse_of_degenerate_data(values: tuple[float, float], symmetric: bool) -> None:
    x, grid = torch.tensor(values)[:, None], AffineGrid(bits=8, symmetric=symmetric)
    lo, hi = ranges.mse(sketched(x), grid)
    assert min(x.min().item(), 0) <= lo <= 0 <= hi <= max(x.max().item(), 0)
    resolution = (0.004 * x.double()).square().sum().item()  # the histogram knows an element to 0.4 %
    assert (
        squared_error(x, lo, hi, grid) <= squared_error(x, x.min().item(), x.max().item(), grid) + resolution
    )


@pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC], ids=str)
@pytest.mark.parametrize("estimator", ["minmax", "mse"])
def test_weight_range_per_channel_is_each_rows_own(estimator: str, grid: AffineGrid) -> None:
    weight = heavy_tailed(6, 300) * torch.logspace(-2, 2, 6)[:, None]
    rows = ranges.weight_range(weight, grid, estimator, axis=0)
    columns = ranges.weight_range(weight.T.contiguous(), grid, estimator, axis=1)
    assert [end.shape for end in rows] == [(6,), (6,)]
    for index, row in enumerate(weight):
        lo, hi = ranges.weight_range(row[None], grid, estimator, axis=0)
        assert (
            (rows[0][index], rows[1][index])
            == (columns[0][index], columns[1][index])
            == (lo.item(), hi.item())
        )


@pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC, AffineGrid(bits=4, symmetric=True)], ids=str)
def test_weight_range_of_rows_by_mse(grid: AffineGrid) -> None:
    weight = heavy_tailed(4, 400)
    lo, hi = ranges.weight_range(weight, grid, "mse", axis=0)
    for row, low, high in zip(weight, lo.tolist(), hi.tolist(), strict=True):
        steps = np.geomspace(1, 1 / 256, 400)
        best = min(squared_error(row, s * row.min().item(), s * row.max().item(), grid) for s in steps)
        assert squared_error(row, low, high, grid) <= min(
            1.1 * best, squared_error(row, row.min().item(), row.max().item(), grid)
        )


@pytest.mark.parametrize("grid", [SYMMETRIC, AffineGrid(bits=4, symmetric=False)], ids=str)
def test_weight_range_per_tensor(grid: AffineGrid) -> None:
    weight = heavy_tailed(20, 50)
    lo, hi = ranges.weight_range(weight, grid, "minmax", axis=None)
    assert (lo.tolist(), hi.tolist()) == ([weight.min().item()], [weight.max().item()])
    lo, hi = ranges.weight_range(weight, grid, "mse", axis=None)
    assert (lo.item(), hi.item()) == pytest.approx(ranges.mse(sketched(weight.reshape(-1, 1)), grid))
    assert squared_error(weight, lo.item(), hi.item(), grid) <= 1.01 * brute_force(weight, grid)


@properties
@given(matrices(), st.data())
def test_group_ranges_of_minmax_are_the_groups_extremes(x: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, x.shape[1]))
    sketch = sketched(x)
    lo, hi, groups = ranges.group_ranges(ranges.minmax(sketch), sketch, PerGroup(k=k))
    assert lo.tolist() == [x[:, groups == group].min().item() for group in range(k)]
    assert hi.tolist() == [x[:, groups == group].max().item() for group in range(k)]


def test_group_ranges_are_cut_to_the_tensors_range() -> None:
    x = torch.tensor([[-1.0, -10.0, -0.1], [2.0, 20.0, 0.2]])
    lo, hi, groups = ranges.group_ranges((-4.0, 5.0), sketched(x), PerChannel())
    assert (groups.tolist(), lo.tolist(), hi.tolist()) == (
        [0, 1, 2],
        pytest.approx([-1.0, -4.0, -0.1]),
        pytest.approx([2.0, 5.0, 0.2]),
    )
    lo, hi, groups = ranges.group_ranges((-4.0, 5.0), sketched(x), PerTensor())
    assert (groups.tolist(), lo.tolist(), hi.tolist()) == ([0, 0, 0], [-4.0], [5.0])


@properties
@given(arrays(least=4), st.floats(50.5, 100))
def test_every_estimator_stays_inside_what_was_seen(x: Tensor, p: float) -> None:
    sketch = sketched(x[:, None])
    lo, hi = ranges.percentile(sketch, p, symmetric=False)
    assert x.min() <= lo <= hi <= x.max()
    assert ranges.percentile(sketch, p, symmetric=True)[1] <= x.abs().max()
    assert x.min() <= ranges.running_minmax(sketch, 0.9)[0]
