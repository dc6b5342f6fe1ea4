"""Grids against torch's own fake quantization and the properties that define them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import arrays, heavy_tailed, properties
from torch import Tensor

from quantlab.quant.grid import AffineGrid, FloatGrid, grid_of

GRIDS = [AffineGrid(bits=bits, symmetric=symmetric) for bits in range(2, 17) for symmetric in (False, True)]
EPSILON = 2.0**-24  # half a unit in FP32's last place, relative

grids = st.builds(AffineGrid, bits=st.integers(2, 16), symmetric=st.booleans())


def fitted(grid: AffineGrid, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point for the range of ``x``."""
    return grid.parameters(x.min(), x.max())


def snapped(grid: AffineGrid, x: Tensor) -> Tensor:
    """``x`` on the grid of its own range."""
    return grid.snap(x, *fitted(grid, x))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_snap_is_torchs_fake_quantize(grid: AffineGrid, clip: float) -> None:
    x = heavy_tailed(4000)
    scale, zero_point = grid.parameters(clip * x.min(), clip * x.max())
    expected = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), grid.q_min, grid.q_max)
    assert torch.equal(grid.snap(x, scale, zero_point), expected)


@properties
@given(grids, arrays(), st.floats(0.01, 1.5))
def test_snap_is_torchs_fake_quantize_at_any_scale(grid: AffineGrid, x: Tensor, clip: float) -> None:
    scale, zero_point = grid.parameters(clip * x.min().double(), clip * x.max().double())
    expected = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), grid.q_min, grid.q_max)
    assert torch.equal(grid.snap(x, scale, zero_point), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_per_channel_snap_is_torchs_fake_quantize(grid: AffineGrid) -> None:
    x = heavy_tailed(300, 7) * torch.logspace(-3, 3, 7)
    scale, zero_point = grid.parameters(x.amin(0), x.amax(0))
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), 1, grid.q_min, grid.q_max)
    assert torch.equal(grid.snap(x, scale, zero_point), expected)


@pytest.mark.parametrize(
    "grid, levels",
    [
        (AffineGrid(bits=8, symmetric=False), (0, 255)),
        (AffineGrid(bits=8, symmetric=True), (-127, 127)),
        (AffineGrid(bits=2, symmetric=False), (0, 3)),
        (AffineGrid(bits=2, symmetric=True), (-1, 1)),
        (AffineGrid(bits=16, symmetric=True), (-32767, 32767)),
    ],
    ids=str,
)
def test_levels(grid: AffineGrid, levels: tuple[int, int]) -> None:
    x = torch.linspace(-3, 3, 200_001)
    q = grid.integers(x, *fitted(grid, x))
    assert (grid.q_min, grid.q_max) == levels
    assert torch.equal(q.unique(), torch.arange(levels[0], levels[1] + 1).float())


def test_parameters_by_hand() -> None:
    scale, zero_point = AffineGrid(bits=8, symmetric=False).parameters(torch.tensor(-0.5), torch.tensor(2.05))
    assert (scale.item(), zero_point.item()) == (pytest.approx(0.01), 50)
    scale, zero_point = AffineGrid(bits=8, symmetric=True).parameters(torch.tensor(-0.5), torch.tensor(2.54))
    assert (scale.item(), zero_point.item()) == (pytest.approx(0.02), 0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("lo, hi", [(2.0, 5.0), (-5.0, -2.0)])
def test_range_always_reaches_zero(symmetric: bool, lo: float, hi: float) -> None:
    grid = AffineGrid(bits=8, symmetric=symmetric)
    ends = torch.tensor([lo, hi])
    assert grid.parameters(*ends) == grid.parameters(*ends.new_tensor([min(lo, 0.0), max(hi, 0.0)]))
    assert grid.snap(ends, *grid.parameters(*ends)).sign().equal(ends.sign())


@properties
@given(grids, arrays())
def test_idempotent(grid: AffineGrid, x: Tensor) -> None:
    scale, zero_point = fitted(grid, x)
    once = grid.snap(x, scale, zero_point)
    assert torch.equal(grid.snap(once, scale, zero_point), once)


@properties
@given(grids, arrays())
def test_error_is_at_most_half_a_step(grid: AffineGrid, x: Tensor) -> None:
    scale, zero_point = fitted(grid, x)
    error = (grid.snap(x, scale, zero_point).double() - x.double()).abs()
    # The scale, its reciprocal and the two products are rounded once each, relative to numbers of up to q_max
    # steps.
    slack = 4 * EPSILON * grid.q_max + EPSILON
    assert (error <= scale.double() * (0.5 + slack)).all()


@properties
@given(grids, arrays())
def test_zero_is_exact(grid: AffineGrid, x: Tensor) -> None:
    assert grid.snap(torch.zeros(3), *fitted(grid, x)).eq(0).all()


@properties
@given(st.integers(2, 16), arrays())
def test_symmetric_grid_is_odd(bits: int, x: Tensor) -> None:
    grid = AffineGrid(bits=bits, symmetric=True)
    parameters = fitted(grid, x)
    assert torch.equal(grid.snap(-x, *parameters), -grid.snap(x, *parameters))


@properties
@given(grids, arrays(), st.floats(0.05, 1.0))
def test_monotone(grid: AffineGrid, x: Tensor, clip: float) -> None:
    x = x.sort().values
    parameters = grid.parameters(clip * x.min().double(), clip * x.max().double())
    assert (grid.snap(x, *parameters).diff() >= 0).all()


@properties
@given(grids, arrays(), st.floats(0.05, 1.5))
def test_snap_is_the_integers_dequantized(grid: AffineGrid, x: Tensor, clip: float) -> None:
    scale, zero_point = grid.parameters(clip * x.min().double(), clip * x.max().double())
    q = grid.integers(x, scale, zero_point)
    assert torch.equal(q, q.round())
    assert q.min() >= grid.q_min
    assert q.max() <= grid.q_max
    assert torch.equal(grid.snap(x, scale, zero_point), (q - zero_point) * scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_integers_and_snap_round_alike(grid: AffineGrid) -> None:
    """Of 300,000 numbers, some lie so near the middle between two levels that another formula rounds
    elsewhere."""
    x = torch.linspace(-1.7, 3.1, 300_001)
    scale, zero_point = fitted(grid, x)
    assert torch.equal(
        grid.snap(x, scale, zero_point), (grid.integers(x, scale, zero_point) - zero_point) * scale
    )


@properties
@given(grids, arrays())
def test_one_range_runs_as_many_equal_ranges_do(grid: AffineGrid, x: Tensor) -> None:
    scale, zero_point = fitted(grid, x)
    broadcast = grid.snap(x, scale.expand(len(x)).clone(), zero_point.expand(len(x)).clone())
    assert torch.equal(grid.snap(x, scale, zero_point), broadcast)
    assert torch.equal(grid.snap(x, scale[None], zero_point[None]), broadcast)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "values",
    [[0.0, 0.0], [1e-45, 0.0], [-1e-45, 1e-45], [-1e-39, 2e-39], [-1e38, 1e38], [0.0, 1e38], [-1e38, 0.0]],
    ids=str,
)
def test_degenerate_ranges(grid: AffineGrid, values: list[float]) -> None:
    x = torch.tensor(values)
    scale, zero_point = fitted(grid, x)
    x_hat = grid.snap(x, scale, zero_point)
    assert scale.isfinite().all()
    assert scale.reciprocal().isfinite().all()
    assert x_hat.isfinite().all()
    assert ((x_hat.double() - x.double()).abs() <= 0.51 * scale.double()).all()


def test_range_of_zero_width_keeps_zeros() -> None:
    for grid in GRIDS:
        assert [parameter.item() for parameter in grid.parameters(torch.tensor(0.0), torch.tensor(0.0))] == [
            1.0,
            0.0,
        ]


def test_input_is_not_changed() -> None:
    x = heavy_tailed(50)
    before = x.clone()
    snapped(AffineGrid(bits=4, symmetric=False), x)
    AffineGrid(bits=4, symmetric=False).integers(x, torch.tensor(0.1), torch.tensor(3.0))
    FloatGrid(format="fp16").snap(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("format, numpys", [("fp16", np.float16), ("bf16", None)])
def test_float_grid_is_the_cast(format: str, numpys: type | None) -> None:
    x = heavy_tailed(2000) * torch.logspace(-8, 4, 2000)
    x_hat = FloatGrid(format=format).snap(x)
    assert x_hat.dtype == torch.float32
    assert torch.equal(x_hat, x.to({"fp16": torch.float16, "bf16": torch.bfloat16}[format]).float())
    assert FloatGrid(format=format).bits == 16
    if numpys is not None:
        with np.errstate(over="ignore"):
            assert np.array_equal(x_hat.numpy(), x.numpy().astype(numpys).astype(np.float32))


@pytest.mark.parametrize(
    "format, x, x_hat",
    [
        ("fp16", 65504.0, 65504.0),
        ("fp16", 65520.0, float("inf")),
        ("fp16", -70000.0, float("-inf")),
        ("fp16", 1.0 + 2**-11, 1.0),  # a tie goes to the even neighbour
        ("bf16", 65520.0, 65536.0),
        ("bf16", 1.0 + 2**-8, 1.0),
    ],
)
def test_float_grid_by_hand(format: str, x: float, x_hat: float) -> None:
    assert FloatGrid(format=format).snap(torch.tensor(x)).item() == x_hat


@pytest.mark.parametrize(
    "precision, grid",
    [
        (8, AffineGrid(bits=8, symmetric=True)),
        ("int8", AffineGrid(bits=8, symmetric=True)),
        ("int16", AffineGrid(bits=16, symmetric=True)),
        (2, AffineGrid(bits=2, symmetric=True)),
        ("fp16", FloatGrid(format="fp16")),
        ("bf16", FloatGrid(format="bf16")),
        (32, None),
        ("fp32", None),
    ],
)
def test_grid_of(precision: int | str, grid: AffineGrid | FloatGrid | None) -> None:
    assert grid_of(precision, symmetric=True) == grid


@pytest.mark.parametrize(
    "precision, message",
    [
        (1, "bits must be a whole number in 2..16, got 1"),
        (17, "bits must be a whole number in 2..16, got 17"),
        (True, "bits must be a whole number in 2..16, got True"),
        (8.5, "bits must be a whole number in 2..16, got 8.5"),
        (None, "bits must be a whole number in 2..16, got None"),
        ("int1", "bits must be a whole number in 2..16, got 1"),
        ("int99", "bits must be a whole number in 2..16, got 99"),
        ("fp61", r"precision must be .*; got 'fp61' \(did you mean .*'fp16'"),
        ("int", "precision must be .*; got 'int'"),
        ("32", "precision must be .*; got '32'"),
        ("8", "precision must be .*; got '8'"),
    ],
)
def test_grid_of_rejects(precision: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_of(precision, symmetric=True)  # type: ignore[arg-type]


def test_constructors_reject() -> None:
    with pytest.raises(ValueError, match="symmetric must be one of False, True; got 'yes'"):
        AffineGrid(bits=8, symmetric="yes")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"format must be one of fp16, bf16; got 'bf61' \(did you mean 'bf16'"
    ):
        FloatGrid(format="bf61")


def test_names() -> None:
    assert [str(grid_of(precision, symmetric=False)) for precision in (8, "fp16")] == [
        "int8 asymmetric",
        "fp16",
    ]
