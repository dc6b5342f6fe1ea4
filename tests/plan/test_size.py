"""Packed sizes in closed form."""

import pytest
from tiny import tied_decoder, tiny_model

from quantlab.network.taps import ModuleInput
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.plan.size import size_bytes, size_fp32_bytes
from quantlab.quant.grid import AffineGrid, FloatGrid, Grid

TAP = ModuleInput("classifier")
PARAMETERS = sum(value.numel() for value in tiny_model().parameters())
CLASSIFIER = 2 * 32  # the numbers in classifier.weight


def affine(bits: int, symmetric: bool = True) -> AffineGrid:
    return AffineGrid(bits=bits, symmetric=symmetric)


def weights(grid: Grid, ranges: int = 1) -> QuantPlan:
    ends = (1.0,) * ranges
    return QuantPlan(
        weights=(WeightQuant(parameter="classifier.weight", grid=grid, axis=0, lo=ends, hi=ends),)
    )


def activations(grid: Grid, ranges: int = 1, channels: int = 0) -> QuantPlan:
    ends, groups = (1.0,) * ranges, tuple(index % ranges for index in range(channels))
    return QuantPlan(
        activations=(ActivationQuant(site="s", tap=TAP, grid=grid, lo=ends, hi=ends, groups=groups),)
    )


def test_fp32() -> None:
    assert size_fp32_bytes(tiny_model()) == size_bytes(tiny_model(), QuantPlan()) == 4 * PARAMETERS


@pytest.mark.parametrize(
    "plan, packed",
    [
        (weights(affine(8)), CLASSIFIER + 4),
        (weights(affine(4)), CLASSIFIER // 2 + 4),
        (weights(affine(3)), CLASSIFIER * 3 // 8 + 4),
        (weights(affine(16)), CLASSIFIER * 2 + 4),
        (weights(affine(8, symmetric=False)), CLASSIFIER + 4 + 1),
        (weights(affine(16, symmetric=False)), CLASSIFIER * 2 + 4 + 2),
        (weights(affine(8), ranges=2), CLASSIFIER + 2 * 4),
        (weights(affine(4, symmetric=False), ranges=2), CLASSIFIER // 2 + 2 * (4 + 1)),
        (weights(FloatGrid(format="bf16"), ranges=0), CLASSIFIER * 2),
    ],
)
def test_weights(plan: QuantPlan, packed: int) -> None:
    assert size_bytes(tiny_model(), plan) == 4 * (PARAMETERS - CLASSIFIER) + packed


@pytest.mark.parametrize("bits, packed", [(3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_bits_that_do_not_fill_a_byte(bits: int, packed: int) -> None:
    """Two numbers of 5 bits are 10 bits: 2 bytes."""
    item = WeightQuant(parameter="classifier.bias", grid=affine(bits), axis=None, lo=(0.0,), hi=(1.0,))
    assert size_bytes(tiny_model(), QuantPlan(weights=(item,))) == 4 * (PARAMETERS - 2) + packed + 4


@pytest.mark.parametrize(
    "plan, ranges",
    [
        (activations(affine(8)), 4),
        (activations(affine(8, symmetric=False)), 4 + 1),
        (activations(affine(16, symmetric=False)), 4 + 2),
        (activations(affine(8), ranges=4, channels=32), 4 * 4 + 32),
        (activations(affine(8, symmetric=False), ranges=4, channels=32), 4 * (4 + 1) + 32),
        (activations(affine(8), ranges=256, channels=768), 256 * 4 + 768),
        (
            activations(affine(8), ranges=257, channels=768),
            257 * 4 + 2 * 768,
        ),  # an index no longer fits a byte
        (activations(FloatGrid(format="fp16"), ranges=0), 0),
    ],
)
def test_activations_cost_their_ranges(plan: QuantPlan, ranges: int) -> None:
    assert size_bytes(tiny_model(), plan) == 4 * PARAMETERS + ranges


def test_a_tied_weight_counts_once_under_either_name() -> None:
    model, grid = tied_decoder(), affine(8)
    table, all_of_it = 12 * 8, sum(value.numel() for value in model.parameters())
    assert size_fp32_bytes(model) == 4 * all_of_it
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        plan = QuantPlan(weights=(WeightQuant(parameter=name, grid=grid, axis=None, lo=(-1.0,), hi=(1.0,)),))
        assert size_bytes(model, plan) == 4 * (all_of_it - table) + table + 4
