"""Roundings against plain NumPy references: GPTQ column by column, AdaRound's schedule, closed forms."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from properties import heavy_tailed
from torch import Tensor

from quantlab.quant.grid import AffineGrid
from quantlab.quant.ranges import weight_range
from quantlab.rounding.adaround import AdaRound, learn_rounding, up
from quantlab.rounding.error_correction import bias_correction, corrected_weight
from quantlab.rounding.gptq import factor, gptq, output_errors, round_by_columns
from quantlab.rounding.in_order import Rows

OUTPUTS, CHANNELS, ROWS = 20, 24, 60
GRIDS = [AffineGrid(bits=bits, symmetric=symmetric) for bits in (3, 4) for symmetric in (True, False)]
GRID = GRIDS[2]

Array = NDArray[np.float64]


def inputs(rows: int = ROWS, seed: int = 0) -> Tensor:
    """Rows with correlated channels, (rows, CHANNELS), float64; one channel is always zero."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(6, CHANNELS))
    x = random.normal(size=(rows, 6)) @ mixing + 0.3 * random.normal(size=(rows, CHANNELS))
    x[:, 5] = 0
    return torch.from_numpy(x)


def gram_of(x: Tensor) -> Tensor:
    return x.T @ x


def ranged(weight: Tensor, grid: AffineGrid, granularity: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point per tensor, per channel (row), or per group of eight columns in each row."""
    if granularity == "tensor":
        return grid.parameters(weight.min(), weight.max())
    if granularity == "channel":
        return grid.parameters(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True))
    groups = weight.unflatten(1, (-1, 8))
    scale, zero_point = grid.parameters(groups.amin(2), groups.amax(2))
    return scale.repeat_interleave(8, 1), zero_point.repeat_interleave(8, 1)


def gptq_in_numpy(
    weight: Array, gram: Array, scale: Array, zero_point: Array, grid: AffineGrid, act_order: bool
) -> Array:
    """GPTQ without blocks: after each column the inverse of the remaining second moments by elimination."""
    gram = gram.copy()
    order = list(np.argsort(-np.diag(gram), kind="stable")) if act_order else list(range(len(gram)))
    dead = np.diag(gram) == 0
    gram[dead, dead] = 1
    gram += 0.01 * np.diag(gram).mean() * np.eye(len(gram))
    weight, integers = weight.copy(), np.zeros_like(weight)
    for position, column in enumerate(order):
        after = order[position + 1 :]
        inverse = np.linalg.inv(gram[np.ix_(order[position:], order[position:])])
        w, s, z = weight[:, column], scale[:, column], zero_point[:, column]
        q = np.clip(np.rint(w.astype(np.float32) * (1 / s.astype(np.float32))) + z, grid.q_min, grid.q_max)
        integers[:, column] = q
        error = (w - (q - z) * s) / inverse[0, 0]
        weight[:, after] -= np.outer(error, inverse[0, 1:])
    return integers


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_against_elimination_without_blocks(grid: AffineGrid, granularity: str, act_order: bool) -> None:
    weight, gram = heavy_tailed(OUTPUTS, CHANNELS), gram_of(inputs())
    scale, zero_point = ranged(weight, grid, granularity)
    wide = [part.expand_as(weight).double().numpy() for part in (scale, zero_point)]
    expected = gptq_in_numpy(weight.double().numpy(), gram.numpy(), *wide, grid, act_order)
    for block in (1, 7, 128):
        found = round_by_columns(weight, factor(gram, 0.01, act_order), scale, zero_point, grid, block)
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rows", [10, ROWS])  # fewer rows than channels, and more
def test_gptq_changes_outputs_less_than_nearest(grid: AffineGrid, rows: int) -> None:
    for seed in range(10):
        weight, gram = heavy_tailed(OUTPUTS, CHANNELS, seed=seed), gram_of(inputs(rows, seed))
        for granularity in ("tensor", "channel", "group"):
            scale, zero_point = ranged(weight, grid, granularity)
            nearest = grid.integers(weight, scale, zero_point)
            found = gptq(weight, gram, factor(gram), scale, zero_point, grid)
            before, after = (output_errors((q - zero_point) * scale - weight, gram) for q in (nearest, found))
            assert bool((after <= before).all())
            assert after.sum() < 0.9 * before.sum()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_of_uncorrelated_inputs_is_nearest(grid: AffineGrid) -> None:
    weight = heavy_tailed(OUTPUTS, CHANNELS)
    scale, zero_point = ranged(weight, grid, "channel")
    nearest = grid.integers(weight, scale, zero_point)
    for gram in (torch.eye(CHANNELS), torch.diag(torch.arange(CHANNELS))):
        for act_order in (False, True):
            found = round_by_columns(weight, factor(gram.double(), 0.01, act_order), scale, zero_point, grid)
            assert torch.equal(found, nearest)


def test_second_moments_count_up_to_a_factor() -> None:
    weight, gram = heavy_tailed(OUTPUTS, CHANNELS), gram_of(inputs())
    scale, zero_point = ranged(weight, GRID, "channel")
    found = [round_by_columns(weight, factor(m), scale, zero_point, GRID) for m in (gram, 2 / ROWS * gram)]
    assert torch.equal(*found)


def test_second_moments_without_inverse() -> None:
    with pytest.raises(ValueError, match="no inverse at a damping of 0: use more"):
        factor(gram_of(inputs(rows=3)), damping=0)


def test_output_error_is_that_of_the_outputs() -> None:
    error, x = heavy_tailed(OUTPUTS, CHANNELS).double(), inputs()
    assert torch.allclose(output_errors(error, gram_of(x)), (x @ error.T).square().sum(0))


def rows_of(weight: Tensor, grid: AffineGrid) -> Rows:
    """A weight with ranges per channel."""
    return Rows(weight, *(part.expand_as(weight) for part in ranged(weight, grid, "channel")), grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_adaround_starts_at_nearest(grid: AffineGrid) -> None:
    weight, x = heavy_tailed(OUTPUTS, CHANNELS), inputs().float()
    rows = rows_of(weight, grid)
    for still in (AdaRound(iterations=0), AdaRound(iterations=3, learning_rate=1e-9)):
        assert torch.equal(learn_rounding(rows, x, x @ weight.T, still), rows.nearest)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_adaround_changes_outputs_less_than_nearest(grid: AffineGrid) -> None:
    weight, x = 0.02 * heavy_tailed(OUTPUTS, CHANNELS), inputs().float()
    rows = rows_of(weight, grid)
    learned = learn_rounding(rows, x, x @ weight.T, AdaRound(iterations=600, learning_rate=1e-2))
    before, after = (
        output_errors(rows.values(integers) - weight, gram_of(x.double())).sum()
        for integers in (rows.nearest, learned)
    )
    assert after < 0.5 * before
    unclipped = (weight / rows.scale + rows.zero_point - learned).abs() < 1
    clipped = (rows.nearest == grid.q_min) | (rows.nearest == grid.q_max)
    assert bool((unclipped | clipped).all())  # up or down, never further


def test_adaround_schedule() -> None:
    settings = AdaRound(iterations=100, warm_up=0.2)
    assert [settings.beta(i) for i in (0, 19)] == [None, None]
    assert settings.beta(20) == 20
    assert settings.beta(60) == pytest.approx(11)
    assert settings.beta(99) == pytest.approx(2, abs=0.02)
    assert up(torch.tensor([-4.0, 0.0, 4.0])).tolist() == pytest.approx([0, 0.5, 1])


def test_adaround_is_seeded() -> None:
    weight, x = heavy_tailed(OUTPUTS, CHANNELS), inputs().float()
    first, again, other = (
        learn_rounding(
            rows_of(weight, GRID),
            x,
            x @ weight.T,
            AdaRound(iterations=200, learning_rate=1e-2, batch_rows=2, seed=seed),
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_error_correction_is_damped_least_squares() -> None:
    weight, x = heavy_tailed(OUTPUTS, CHANNELS).double(), inputs()
    seen = x + 0.1 * torch.from_numpy(np.random.default_rng(1).normal(size=x.shape))
    moved, gram = (x - seen).T @ seen, gram_of(seen)
    expected = np.linalg.lstsq(seen.numpy(), (x @ weight.T).numpy())[0].T
    whole = corrected_weight(weight, moved, gram, strength=1, damping=0)
    assert torch.allclose(whole, torch.from_numpy(expected), atol=1e-8)
    half = corrected_weight(weight, moved, gram, strength=0.5, damping=0)
    assert torch.allclose(half, (weight + whole) / 2)
    assert torch.equal(corrected_weight(weight, torch.zeros_like(moved), gram), weight)
    damped = corrected_weight(weight, moved, gram, damping=1e12)
    assert torch.allclose(damped, weight, atol=1e-8)


def test_bias_correction_keeps_the_mean_of_outputs() -> None:
    weight, x = heavy_tailed(OUTPUTS, CHANNELS).double(), inputs()
    rounded, seen = weight.round(), x + 0.2
    gained = bias_correction(weight, x.mean(0), rounded, seen.mean(0))
    assert torch.allclose((seen @ rounded.T + gained).mean(0), (x @ weight.T).mean(0))


def test_ranges_of_rows_are_those_of_the_plan() -> None:
    """The tests' ranges per channel are a plan's."""
    weight = heavy_tailed(OUTPUTS, CHANNELS)
    lo, hi = weight_range(weight, GRID, "minmax", 0)
    assert torch.equal(GRID.parameters(lo, hi)[0][:, None], ranged(weight, GRID, "channel")[0])
