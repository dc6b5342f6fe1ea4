"""Log2 grids of probabilities."""

import math

import pytest
import torch

from quantlab.quant.log2 import Log2Grid


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_powers_of_two_and_zero_are_exact(bits: int) -> None:
    grid = Log2Grid(bits=bits)
    powers = torch.exp2(-torch.arange(grid.zero).float())
    assert torch.equal(grid.snap(powers), powers)
    assert torch.equal(grid.integers(powers), torch.arange(grid.zero).float())
    assert torch.equal(grid.snap(torch.zeros(3)), torch.zeros(3))


def test_rounding_switches_at_the_geometric_mean() -> None:
    """At sqrt(2) 2^k, not in the middle, where FQ-ViT's code switches."""
    grid = Log2Grid(bits=4)
    middle = math.sqrt(2) / 4
    assert grid.snap(torch.tensor([middle * 0.999, middle * 1.001])).tolist() == [0.25, 0.5]
    assert grid.snap(torch.tensor([0.36])).item() == 0.5  # below 1.5 / 4


def test_what_is_too_small_is_zero() -> None:
    grid = Log2Grid(bits=3)
    p = torch.tensor([2.0**-6.4, 2.0**-6.6, 2.0**-30, 1e-45])
    assert grid.snap(p).tolist() == [2.0**-6, 0.0, 0.0, 0.0]


def test_the_relative_error_is_bounded() -> None:
    p = torch.softmax(torch.randn(50, 40, generator=torch.manual_seed(0)) * 3, dim=-1)
    snapped = Log2Grid(bits=4).snap(p)
    kept = snapped > 0
    ratio = (snapped / p)[kept]
    assert ratio.min() >= 2**-0.5001 and ratio.max() <= 2**0.5001
    assert bool((p[~kept] < 2**-14.49).all())


def test_beyond_the_unit_interval() -> None:
    snapped = Log2Grid(bits=4).snap(torch.tensor([1.7, -0.2, float("nan")]))
    assert snapped[:2].tolist() == [1.0, 0.0] and bool(snapped[2].isnan())


@pytest.mark.parametrize("bits", [1, 8])
def test_bits_are_checked(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"bits must be a whole number in 2\.\.7, got {bits}"):
        Log2Grid(bits=bits)
