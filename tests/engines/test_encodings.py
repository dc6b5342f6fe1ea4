"""Each kind of integers times a weight, against float64 on the values that they stand for."""

import pytest
import torch
from properties import heavy_tailed
from torch import Tensor

from quantlab.engines.encodings import ByToken, Integers, PreparedWeight, TwoGrids, WithWideColumns
from quantlab.engines.kernel_choice import CPU, KINDS, is_exact
from quantlab.kernels.products import IntegerTensor, IntegerWeight
from quantlab.quant.dynamic import DynamicGrid
from quantlab.quant.grid import AffineGrid
from quantlab.quant.splits import residual_integers, snap_residual

INPUTS, OUTPUTS = 96, 24


def prepared(symmetric: bool = True) -> tuple[PreparedWeight, Tensor]:
    """A weight for a kernel that is exact here, and its values in float64."""
    original = heavy_tailed(OUTPUTS, INPUTS, seed=1)
    grid = AffineGrid(bits=8, symmetric=symmetric)
    scale, zero_point = grid.parameters(original.amin(1), original.amax(1))
    shift = 0 if symmetric else 128
    weight = IntegerWeight(
        integers=(grid.integers(original, scale[:, None], zero_point[:, None]) - shift).to(torch.int8),
        scale=scale,
        zero_point=(zero_point - shift).int(),
    )
    kind = next(kind for kind in KINDS if kind.fits(symmetric, CPU) and is_exact(kind, CPU))
    values = (weight.integers.double() - weight.zero_point[:, None]) * scale[:, None].double()
    return PreparedWeight(products=[kind(weight)], weight=weight, original=lambda: original), values


def original_of(by: PreparedWeight) -> Tensor:
    assert by.original is not None
    return by.original()


def close(integers: Integers, by: PreparedWeight, expected: Tensor) -> None:
    bias = torch.linspace(-1, 1, OUTPUTS)
    for one, added in ((None, 0), (bias, bias)):
        y = integers.multiply(by, one)
        assert y.dtype == torch.float32 and y.shape == expected.shape
        assert float((y - expected - added).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("weight_symmetric", [True, False], ids=["symmetric weight", "asymmetric weight"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_for_each_token(bits: int, symmetric: bool, weight_symmetric: bool) -> None:
    x, grid = heavy_tailed(3, 5, INPUTS) + 0.5, DynamicGrid(bits=bits, symmetric=symmetric)
    by, values = prepared(weight_symmetric)
    tokens = grid.encode(x)
    assert tokens is not None
    close(
        ByToken(tokens=tokens, symmetric=symmetric, middle=grid.middle), by, grid.snap(x).double() @ values.T
    )


def test_two_grids_are_two_products_of_one_weight() -> None:
    x, grid = heavy_tailed(7, INPUTS), AffineGrid(bits=4, symmetric=False)
    scale, zero_point = grid.parameters(torch.tensor(-1.0), torch.tensor(1.5))
    q, rest = residual_integers(x, grid, scale, zero_point, 3, 8)
    by, values = prepared()
    encoded = TwoGrids(
        narrow=IntegerTensor(integers=q.byte(), scale=scale.item(), zero_point=int(zero_point)),
        rest=IntegerTensor(integers=(rest + 128).byte(), scale=8 * scale.item(), zero_point=128),
    )
    close(encoded, by, snap_residual(x, grid, scale, zero_point, 3, 8).double() @ values.T)


def test_wide_columns_multiply_the_weight_before_it_was_quantized() -> None:
    x, grid, columns = heavy_tailed(4, 3, INPUTS), DynamicGrid(bits=8, symmetric=True), torch.tensor([2, 50])
    narrow = x.index_fill(-1, columns, 0.0)
    by, values = prepared()
    tokens = grid.encode(narrow)
    assert tokens is not None
    wide = x[..., columns].half().float()
    encoded = WithWideColumns(
        narrow=ByToken(tokens=tokens, symmetric=True, middle=128), columns=columns, values=wide
    )
    expected = grid.snap(narrow).double() @ values.T
    close(encoded, by, expected + wide.double() @ original_of(by)[:, columns].half().double().T)
