"""Learned clipping of weights: never worse than min-max on its rows, better where clipping pays."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from searches import SearchLab
from tiny import GEMM, padded, settings_of, sites_of, tiny_model
from torch import Tensor

from quantlab.calibration.estimators import Calibration, MinMax
from quantlab.calibration.learned_clipping import LearnedClipping, learned_ranges, snapped
from quantlab.calibration.probe import observe
from quantlab.methods.bits import Bits
from quantlab.methods.uniform import Uniform
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import WeightQuant
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid
from quantlab.quant.ranges import weight_range
from quantlab.splits.top_channels import TopChannels
from quantlab.storage.memo import Memo
from quantlab.transforms.hadamard import Hadamard
from quantlab.trial.planning import make_plan

OUTPUTS, CHANNELS, GROUP, DEAD = 12, 16, 8, 5
GRIDS = [AffineGrid(bits=bits, symmetric=symmetric) for bits in (3, 8) for symmetric in (True, False)]
QUICK = LearnedClipping(epochs=10, input_rows=64, batch_rows=16, learning_rate=0.5)


def weight_and_inputs() -> tuple[Tensor, Tensor]:
    """Half of the rows have an outlier weight at a channel that is always zero."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(OUTPUTS, CHANNELS), torch.randn(64, CHANNELS)
    inputs[:, DEAD] = 0
    weight[::2, DEAD] = 30
    return weight, inputs


def min_max(weight: Tensor, grid: AffineGrid, granularity: str) -> WeightQuant:
    if granularity == "group":
        ends = (FrozenTensor(end.reshape(OUTPUTS, -1)) for end in weight.reshape(-1, GROUP).aminmax(dim=1))
        return WeightQuant(parameter="w", grid=grid, axis=0, lo=next(ends), hi=next(ends), group=GROUP)
    axis = 0 if granularity == "channel" else None
    lo, hi = weight_range(weight, grid, "minmax", axis)
    return WeightQuant(parameter="w", grid=grid, axis=axis, lo=tuple(lo.tolist()), hi=tuple(hi.tolist()))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_output_is_worse_and_what_costs_nothing_is_clipped(grid: AffineGrid, granularity: str) -> None:
    weight, inputs = weight_and_inputs()
    start = min_max(weight, grid, granularity)
    learned = learned_ranges(start, weight, inputs, QUICK)
    before, after = (
        ((inputs @ (item.snap(weight) - weight).T) ** 2).double().mean(0) for item in (start, learned)
    )
    if granularity == "tensor":
        before, after = before.sum(), after.sum()
    assert (after <= before).all() and after.sum() < 0.9 * before.sum()
    assert learned == learned_ranges(start, weight, inputs, QUICK) != start
    for old, new in ((start.lo, learned.lo), (start.hi, learned.hi)):
        assert all(abs(x) <= abs(y) for x, y in zip(new, old, strict=True))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_learned_on_is_the_grid(grid: AffineGrid) -> None:
    weight, _ = weight_and_inputs()
    lo, hi = 0.3 * weight.amin(1, keepdim=True), 0.7 * weight.amax(1, keepdim=True)
    torch.testing.assert_close(snapped(weight, lo, hi, grid), grid.snap(weight, *grid.parameters(lo, hi)))
    assert (snapped(0 * weight, 0 * lo, 0 * hi, grid) == 0).all()


def test_the_gradient_of_a_clipped_weight_is_that_of_its_end() -> None:
    """Of one that is not clipped, it is the rounding's error: LSQ's gradient."""
    hi = torch.tensor([[0.7]], requires_grad=True)
    grid = AffineGrid(bits=3, symmetric=True)
    for value, step in ((2.0, 3.0), (-2.0, -3.0), (0.3, round(0.9 / 0.7) - 0.9 / 0.7)):
        hi.grad = None
        snapped(torch.tensor([[value]]), -0.1 * hi.detach(), hi, grid).sum().backward()  # type: ignore[no-untyped-call]
        assert hi.grad is not None and float(hi.grad) == pytest.approx(step / 3, abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradient_is_that_of_the_outputs_error_with_roundings_held(grid: AffineGrid) -> None:
    """OmniQuant's equation 2 with straight-through roundings: ``round(x)`` is x plus what it adds at the
    start, and what is clipped at the start stays so. Central differences of the loss in both strengths of
    every row, float64."""
    weight, inputs = (x.double() for x in weight_and_inputs())
    lo, hi = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)

    def ends(strengths: Tensor) -> tuple[Tensor, Tensor]:
        below, above = torch.sigmoid(strengths)
        return below * lo, above * hi

    def steps(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:  # the scale, and -lo / scale
        if grid.symmetric:
            return torch.maximum(-low, high) / grid.q_max, torch.zeros_like(low)
        return (high - low) / (2**grid.bits - 1), -low * (2**grid.bits - 1) / (high - low)

    def adds(x: Tensor) -> Tensor:
        return x.round() - x

    start = torch.linspace(-1, 2, 2 * OUTPUTS, dtype=torch.float64).reshape(2, OUTPUTS, 1)
    scale, shift = steps(*ends(start))
    added, moved = adds(weight / scale), adds(shift)
    unclipped = (weight / scale).round() + shift.round()
    clipped = unclipped.clamp(grid.q_min, grid.q_max)

    def held(strengths: Tensor) -> Tensor:
        scale, shift = steps(*ends(strengths))
        zero_point = shift + moved
        integers = torch.where(clipped == unclipped, weight / scale + added + zero_point, clipped)
        return (((integers - zero_point) * scale - weight) @ inputs.T).square().mean()

    strengths = start.clone().requires_grad_()
    loss = ((snapped(weight, *ends(strengths), grid) - weight) @ inputs.T).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    step = 1e-6
    directions = step * torch.eye(start.numel(), dtype=torch.float64).reshape(-1, *start.shape)
    slopes = torch.stack([(held(start + d) - held(start - d)) / (2 * step) for d in directions])
    assert strengths.grad is not None and bool((strengths.grad != 0).any(0).all())
    assert loss.item() == pytest.approx(held(start).item())
    torch.testing.assert_close(strengths.grad, slopes.reshape(start.shape), rtol=1e-4, atol=1e-5)


def planned(calibration: Calibration, **settings: object) -> QuantPlan:
    """A plan in W3A8 of a tiny model with the same rows for all of them."""
    model, batches = tiny_model(), [padded(), padded(seed=1)]
    sites = sites_of(model, GEMM)
    bits = Bits(weights=3, weight_granularity="channel")
    config = settings_of(method=Uniform(), bits=bits, calibration=calibration, **settings)
    material = SimpleNamespace(model=model, calibration_batches=lambda _: batches, observed=Memo())
    return make_plan(config, material, sites, observe(model, sites, batches))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [{}, {"transform": Hadamard()}, {"split": TopChannels(k=2)}], ids=str)
def test_no_iterations_are_min_max_and_others_change_ranges_of_linears_alone(
    slots: dict[str, object],
) -> None:
    plain = planned(MinMax(), **slots)
    assert planned(replace(QUICK, epochs=0), **slots).fingerprint == plain.fingerprint
    learned = planned(QUICK, **slots)
    assert (learned.activations, learned.transforms) == (plain.activations, plain.transforms)
    changed = [a.parameter for a, b in zip(learned.weights, plain.weights, strict=True) if a != b]
    assert any("query" in name for name in changed) and not any("embeddings" in name for name in changed)
    same = [replace(a, lo=b.lo, hi=b.hi) == b for a, b in zip(learned.weights, plain.weights, strict=True)]
    assert all(same)


def test_a_seed_gives_the_same_plan() -> None:
    few = replace(QUICK, input_rows=8)
    plans = [planned(replace(few, seed=seed)).fingerprint for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_a_trial_is_made_with_it(planted: SearchLab) -> None:
    result = planted.trial("calibration=learned_clipping", "calibration.epochs=1", "bits.weights=3")
    assert result.metrics["accuracy"] > 0


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", -1), ("learning_rate", 0), ("input_rows", 0), ("batch_rows", 1.5)]
)
def test_bad_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"calibration.{name} must be"):
        LearnedClipping(**{name: value})  # type: ignore[arg-type]
