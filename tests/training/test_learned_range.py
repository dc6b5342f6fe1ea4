"""Learned ranges: the grid's own numbers forward, LSQ+'s gradients backward."""

import pytest
import torch
from torch import Tensor

from quantlab.quant.grid import AffineGrid
from quantlab.training.learned_range import LearnedRange, snap

GRIDS = [AffineGrid(bits=bits, symmetric=symmetric) for bits in (3, 8) for symmetric in (True, False)]


def ranges(grid: AffineGrid, count: int) -> tuple[Tensor, Tensor]:
    spread = torch.linspace(0.5, 2.0, count)
    return grid.parameters(-spread, 1.5 * spread)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_forward_is_the_grids_own_to_the_bit(grid: AffineGrid) -> None:
    x = 2 * torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    scale, zero_point = ranges(grid, 5)
    learned = LearnedRange(grid, scale, zero_point, factor=True)
    assert torch.equal(learned.snap(x, (-1,)), grid.snap(x, scale, zero_point))
    assert not learned.moved


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients_are_finite_differences_of_the_soft_surrogate(grid: AffineGrid) -> None:
    """With every rounding's error and side held constant, quantization is smooth: its slope is LSQ+'s."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale, zero_point = (each.double() for each in ranges(grid, 3))
    zero_point = zero_point + (0.0 if grid.symmetric else 0.3)
    errors = (x / scale).round() - x / scale, zero_point.round() - zero_point
    nearest = (x / scale).round() + zero_point.round()
    end = nearest.clamp(grid.q_min, grid.q_max)
    weights = torch.randn(40, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def surrogate(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        z = zero_point + errors[1]
        q = torch.where(nearest == end, x / scale + errors[0] + z, end)
        return (weights * (q - z) * scale).sum()

    leaves = [each.clone().requires_grad_() for each in (x, scale, zero_point)]
    wanted = torch.autograd.grad(surrogate(*leaves), leaves)
    torch.autograd.gradcheck(surrogate, leaves, eps=1e-6, atol=1e-5)  # by finite differences
    found = torch.autograd.grad((weights * snap(*leaves, grid.q_min, grid.q_max)).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_factor_divides_gradients_of_ranges_alone() -> None:
    grid, x = AffineGrid(bits=4, symmetric=False), torch.randn(50, 2)
    found = []
    for factor in (False, True):
        learned, leaf = LearnedRange(grid, *ranges(grid, 2), factor=factor), x.clone().requires_grad_()
        learned.snap(leaf, (-1,)).square().sum().backward()
        assert learned.growth.grad is not None and leaf.grad is not None
        found.append((learned.growth.grad, leaf.grad))
    torch.testing.assert_close(found[1][0], found[0][0] / (50 * 15) ** 0.5)
    assert torch.equal(found[0][1], found[1][1])


def test_ranges_stay_positive_and_zero_points_in_the_grid() -> None:
    grid = AffineGrid(bits=4, symmetric=False)
    learned = LearnedRange(grid, *ranges(grid, 2), factor=True)
    assert learned.shift is not None
    with torch.no_grad():
        learned.growth.fill_(-30.0)
        learned.shift.copy_(torch.tensor([-5.0, 5.0]))
    lo, hi = learned.ends()
    assert learned.moved and bool((hi - lo > 0).all())
    assert bool((lo <= 0).all()) and bool((hi >= 0).all())
