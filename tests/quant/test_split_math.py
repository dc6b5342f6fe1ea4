"""What splits keep wide: columns by threshold and rank, and the rest beyond a narrow grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import heavy_tailed, matrices, properties, sketched
from torch import Tensor

from quantlab.quant.grid import AffineGrid
from quantlab.quant.splits import (
    channels_beyond,
    columns_beyond,
    fit_residual,
    residual_integers,
    snap_residual,
    top_channels,
)


def test_a_column_is_wide_if_any_of_its_elements_reaches_the_threshold() -> None:
    x = torch.zeros(2, 3, 4)
    x[0, 1, 2], x[1, 2, 0], x[1, 1, 1] = 6.0, -7.0, 5.999
    assert columns_beyond(x, 6.0).tolist() == [True, False, True, False]
    assert not columns_beyond(x, float("inf")).any() and columns_beyond(x, 0.0).all()
    magnitudes = x.abs().flatten(0, 1).amax(0).double().numpy()
    assert channels_beyond(magnitudes, 6.0) == (0, 2) and channels_beyond(magnitudes, float("inf")) == ()


def test_top_channels_are_the_largest_and_the_first_of_equal_ones() -> None:
    magnitudes = torch.tensor([1.0, 5.0, 2.0, 5.0, 2.0], dtype=torch.float64).numpy()
    assert [top_channels(magnitudes, k) for k in range(4)] == [(), (1,), (1, 3), (1, 2, 3)]


@properties
@given(
    st.builds(AffineGrid, bits=st.integers(2, 8), symmetric=st.booleans()),
    matrices(largest=1e4),
    st.floats(0.001, 1.0),
    st.integers(0, 10),
    st.integers(2, 8),
)
def test_the_value_is_that_of_the_two_integers(
    grid: AffineGrid, x: Tensor, shrink: float, exponent: int, bits: int
) -> None:
    scale, zero_point = grid.parameters(shrink * x.min(), shrink * x.max())
    q, rest = residual_integers(x, grid, scale, zero_point, exponent, bits)
    assert torch.equal(q, grid.integers(x, scale, zero_point)) and rest.abs().max() < 2 ** (bits - 1)
    whole = q.double() - zero_point.double() + 2.0**exponent * rest.double()
    assert torch.equal(snap_residual(x, grid, scale, zero_point, exponent, bits), whole.float() * scale)


def test_inside_the_narrow_range_there_is_no_rest() -> None:
    x = heavy_tailed(300, 4)
    for symmetric in (True, False):
        grid = AffineGrid(bits=4, symmetric=symmetric)
        scale, zero_point = grid.parameters(x.min(), x.max())
        _, rest = residual_integers(x, grid, scale, zero_point, 1, 8)
        assert not rest.any()
        assert torch.equal(snap_residual(x, grid, scale, zero_point, 1, 8), grid.snap(x, scale, zero_point))


def test_two_products_of_one_weight_are_exact() -> None:
    """(q + 2^k q_rest) W_q in whole numbers, against float64."""
    x, w = heavy_tailed(6, 64), torch.randint(-127, 128, (5, 64), generator=torch.manual_seed(0))
    grid = AffineGrid(bits=4, symmetric=False)
    (lo, hi), exponent = fit_residual(sketched(x), grid, 4)
    scale, zero_point = grid.parameters(torch.tensor(lo), torch.tensor(hi))
    q, rest = residual_integers(x, grid, scale, zero_point, exponent, 4)
    acc = (q - zero_point).long() @ w.T + (rest.long() @ w.T) * 2**exponent
    y = snap_residual(x, grid, scale, zero_point, exponent, 4).double() @ w.T.double()
    torch.testing.assert_close(acc.double() * scale.double(), y, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_planted_outlier_is_solved_by_the_rest(symmetric: bool) -> None:
    x = torch.randn(500, 16, generator=torch.manual_seed(0))
    x[:, 3] += 80
    grid = AffineGrid(bits=4, symmetric=symmetric)
    (lo, hi), exponent = fit_residual(sketched(x), grid, 4)
    split = snap_residual(x, grid, *grid.parameters(torch.tensor(lo), torch.tensor(hi)), exponent, 4)
    plain = grid.snap(x, *grid.parameters(x.min(), x.max()))
    errors = [float((y - x)[:, torch.arange(16) != 3].square().sum()) for y in (split, plain)]
    assert exponent > 0 and hi < 20 and errors[0] < 0.2 * errors[1]


def test_without_outliers_the_error_does_not_grow() -> None:
    x = torch.rand(400, 8, generator=torch.manual_seed(0)) * 2 - 1
    grid = AffineGrid(bits=8, symmetric=True)
    (lo, hi), exponent = fit_residual(sketched(x), grid, 8)
    split = snap_residual(x, grid, *grid.parameters(torch.tensor(lo), torch.tensor(hi)), exponent, 8)
    plain = grid.snap(x, *grid.parameters(x.min(), x.max()))
    assert float((split - x).square().sum()) <= 1.05 * float((plain - x).square().sum())
