"""Dynamic grids: each token on its own grid, and integers whose product is exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import heavy_tailed, matrices, properties
from torch import Tensor

from quantlab.kernels import native
from quantlab.quant.dynamic import DynamicGrid
from quantlab.quant.grid import AffineGrid


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    native.library()  # hypothesis thinks a first call that compiles too slow


grids = st.builds(DynamicGrid, bits=st.integers(2, 8), symmetric=st.booleans())


@properties
@given(grids, matrices())
def test_each_token_has_the_grid_of_its_own_extremes(grid: DynamicGrid, x: Tensor) -> None:
    affine = AffineGrid(bits=grid.bits, symmetric=grid.symmetric)
    alone = [affine.snap(token, *affine.parameters(token.min(), token.max())) for token in x]
    assert torch.equal(grid.snap(x), torch.stack(alone))


@properties
@given(grids, matrices())
def test_integers_stand_for_the_values(grid: DynamicGrid, x: Tensor) -> None:
    encoded = grid.encode(x)
    assert encoded is not None and encoded.integers.dtype == torch.uint8
    assert torch.equal((encoded.integers - encoded.zero_point) * encoded.scale, grid.snap(x))
    assert bool(((encoded.zero_point >= 0) & (encoded.zero_point <= 255)).all())


@properties
@given(grids, matrices(largest=1e30))
def test_zero_is_exact_and_the_error_is_half_a_step(grid: DynamicGrid, x: Tensor) -> None:
    scale, _ = grid.parameters(x)
    steps = 0.5 + (not grid.symmetric) * 0.5 + 1e-3  # an asymmetric range moves by the zero point's rounding
    assert bool(((grid.snap(x) - x).abs() <= steps * scale).all())
    assert torch.equal(grid.snap(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_product_of_integers_is_exact(symmetric: bool) -> None:
    """y = acc * s_t * s_w + b, with a whole accumulator, against float64."""
    x, w = heavy_tailed(5, 384), heavy_tailed(7, 384, seed=1)
    weights = AffineGrid(bits=8, symmetric=True)
    scale_w, zero = weights.parameters(w.amin(1, keepdim=True), w.amax(1, keepdim=True))
    encoded = DynamicGrid(bits=8, symmetric=symmetric).encode(x)
    assert encoded is not None
    whole = encoded.integers.long() - encoded.zero_point.long()
    acc = whole @ weights.integers(w, scale_w, zero).long().T
    y = acc.double() * encoded.scale.double() * scale_w.T.double()
    expected = (
        DynamicGrid(bits=8, symmetric=symmetric).snap(x).double() @ weights.snap(w, scale_w, zero).double().T
    )
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-4)


@properties
@given(grids, matrices(columns=40))
def test_c_and_torch_agree_to_the_bit(grid: DynamicGrid, x: Tensor) -> None:
    values, encoded = grid.quantize(x, values=True, integers=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        expected, by_torch = grid.quantize(x, values=True, integers=True)
    assert values is not None and expected is not None and torch.equal(values, expected)
    assert encoded is not None and by_torch is not None
    for name in ("integers", "scale", "zero_point"):
        assert torch.equal(getattr(encoded, name), getattr(by_torch, name)), name


def test_in_place() -> None:
    x = heavy_tailed(4, 9)
    grid, snapped = DynamicGrid(bits=4, symmetric=False), DynamicGrid(bits=4, symmetric=False).snap(x)
    assert grid.snap(x, overwrite=True) is x and torch.equal(x, snapped)


def test_nan_has_no_integers_and_stays_nan() -> None:
    x = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    grid = DynamicGrid(bits=8, symmetric=True)
    assert grid.encode(x) is None
    assert bool(grid.snap(x)[0, 1].isnan()) and torch.equal(grid.snap(x)[1], grid.snap(x[1:])[0])


def test_bits_are_checked() -> None:
    with pytest.raises(ValueError, match=r"bits must be a whole number in 2\.\.16, got 1"):
        DynamicGrid(bits=1, symmetric=True)
