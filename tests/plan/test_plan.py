"""Plans travel as JSON and rebuild the quantized model by themselves."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import floats, properties
from tiny import ALL, logits, padded, plan_of, sites_of, state, tiny_model
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert, quantized_weights
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.peg import Peg
from quantlab.network.taps import KINDS, tap_of
from quantlab.plan.edits import Add, Clip
from quantlab.plan.plan import QuantPlan, SiteTransform, read_plan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant, weight_ranges
from quantlab.quant.basis import Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid, FloatGrid

BITS = Bits(
    weights=8, weight_granularity="channel", norms="bf16", rules=({"match": "*.ffn.mid", "bits": "fp16"},)
)


def peg_plan() -> QuantPlan:
    """A plan with groups, channels, float formats and single ranges in it."""
    model, calibration = tiny_model(), MinMax()
    method, sites = Peg(sites=("*.ffn.sum", "*.attn.probs"), k=3), sites_of(model, ALL)
    weights = plan_weights(model, method, BITS, calibration)
    return plan_of(method, sites, observe(model, sites, [padded()]), weights, BITS, calibration)


ends = st.lists(floats(), min_size=1, max_size=5).map(tuple)
affine = st.builds(AffineGrid, bits=st.integers(2, 16), symmetric=st.booleans())
grids = affine | st.builds(FloatGrid, format=st.sampled_from(["fp16", "bf16"]))
taps = st.builds(tap_of, st.text(max_size=8), st.sampled_from(sorted(KINDS)))
indices = st.lists(st.integers(0, 4)).map(tuple)
activations = st.builds(
    ActivationQuant, site=st.text(max_size=8), tap=taps, grid=grids, lo=ends, hi=ends, groups=indices
)
arrays = st.lists(floats(), max_size=3).map(torch.tensor).map(FrozenTensor)
weights = st.builds(
    WeightQuant,
    parameter=st.text(max_size=8),
    grid=grids,
    axis=st.none() | st.just(0),
    lo=ends | arrays,
    hi=ends | arrays,
    group=st.none() | st.just(2),
    integers=st.none() | arrays,
)
bases = st.builds(
    Diagonal, scale=st.just(FrozenTensor([1.0, 2.0])), shift=st.none() | st.just(FrozenTensor([0.0, 1.0]))
)
transforms = st.builds(SiteTransform, site=st.text(max_size=8), basis=bases, weights=st.just(("a", "b")))
edits = st.builds(Clip, parameter=st.text(max_size=8), limit=floats()) | st.builds(
    Add, parameter=st.text(max_size=8), values=arrays
)
plans = st.builds(
    QuantPlan,
    activations=st.lists(activations, max_size=3).map(tuple),
    weights=st.lists(weights, max_size=3, unique_by=lambda item: item.parameter).map(tuple),
    transforms=st.lists(transforms, max_size=2, unique_by=lambda item: item.site).map(tuple),
    edits=st.lists(edits, max_size=2).map(tuple),
)


@properties
@given(plans)
def test_json_round_trip(plan: QuantPlan) -> None:
    again = QuantPlan.from_json(plan.to_json(), plan.arrays)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.fingerprint == plan.fingerprint


def test_a_plan_rebuilds_the_model_from_json() -> None:
    plan, batch = peg_plan(), padded(seed=1)
    model = tiny_model()
    with insert(model, plan):
        expected = logits(model, batch)
    rebuilt = tiny_model()
    with insert(rebuilt, QuantPlan.from_json(plan.to_json())):
        assert torch.equal(logits(rebuilt, batch), expected)
    assert not torch.equal(logits(rebuilt, batch), expected)


def whole_plan(model: PreTrainedModel) -> QuantPlan:
    """A plan with a shifted basis, an edit, stored integers, and a range for every 8 inputs."""
    query, dense = (f"bert.encoder.layer.0.{name}" for name in ("attention.self.query", "output.dense"))
    basis = Diagonal(
        scale=FrozenTensor(torch.linspace(0.5, 2, 32)), shift=FrozenTensor(torch.linspace(-1, 1, 32))
    )
    grid, rows = AffineGrid(bits=4, symmetric=True), model.get_parameter(f"{dense}.weight").reshape(32, -1, 8)
    site = next(site for site in sites_of(model, ALL) if site.name == "embed.out")
    return QuantPlan(
        activations=(ActivationQuant(site="embed.out", tap=site.tap, grid=grid, lo=(-4.0,), hi=(4.0,)),),
        weights=(
            WeightQuant(parameter=f"{query}.weight", grid=grid, axis=None, lo=(-0.5,), hi=(0.5,)),
            WeightQuant(
                parameter=f"{dense}.weight",
                grid=grid,
                axis=0,
                lo=FrozenTensor(rows.amin(-1)),
                hi=FrozenTensor(rows.amax(-1)),
                group=8,
                integers=FrozenTensor(torch.ones(rows.flatten(1).shape, dtype=torch.int8)),
            ),
        ),
        transforms=(SiteTransform(site="embed.out", basis=basis, weights=(f"{query}.weight",)),),
        edits=(Clip(parameter=f"{query}.weight", limit=0.5),),
    )


def test_a_plan_with_arrays_is_read_back_from_its_folder(tmp_path: Path) -> None:
    model, batch = tiny_model(), padded()
    plan = whole_plan(model)
    assert [path.name for path in plan.save(tmp_path)] == ["plan.json", "plan.safetensors"]
    again = read_plan(tmp_path / "plan.json")
    assert again == plan and again.fingerprint == plan.fingerprint
    before = state(model)
    with insert(model, again):
        assert not torch.equal(logits(model, batch), logits(tiny_model(), batch))
    assert state(model) == before
    QuantPlan().save(tmp_path)
    assert not (tmp_path / "plan.safetensors").exists()
    assert read_plan(tmp_path / "plan.json") == QuantPlan()


def test_arrays_of_another_plan_are_refused(tmp_path: Path) -> None:
    plan = whole_plan(tiny_model())
    plan.save(tmp_path)
    others = {name: torch.zeros_like(array) for name, array in plan.arrays.items()}
    with pytest.raises(ValueError, match="is another one than the plan was written with"):
        QuantPlan.from_json(plan.to_json(), others)
    (tmp_path / "plan.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="plan.safetensors is broken"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.safetensors").unlink()
    with pytest.raises(ValueError, match="missing from plan.safetensors"):
        read_plan(tmp_path / "plan.json")


def test_a_shifted_basis_passes_the_weight_that_is_not_rounded() -> None:
    """In float64, and with a grid so fine that only the bookkeeping could be wrong, nothing changes."""
    model, batch = tiny_model().double(), padded()
    plan = whole_plan(model)
    fine = AffineGrid(bits=16, symmetric=True)
    weight = replace(plan.weights[0], grid=fine, lo=(-9.0,), hi=(9.0,))
    alone = replace(plan, activations=(), weights=(weight,), edits=())
    expected = logits(model, batch)
    with insert(model, alone):
        torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-3)
    coarse = replace(weight, grid=AffineGrid(bits=2, symmetric=True), lo=(-1e-9,), hi=(1e-9,))
    query = model.bert.encoder.layer[0].attention.self.query
    with quantized_weights(model, replace(alone, weights=(coarse,))):  # the weight is all but zero then
        z = alone.transforms[0].basis.shift.tensor.double()  # type: ignore[union-attr]
        gained = query.bias - tiny_model().double().bert.encoder.layer[0].attention.self.query.bias
        original = tiny_model().double().bert.encoder.layer[0].attention.self.query.weight
        torch.testing.assert_close(gained, original @ z, rtol=1e-6, atol=1e-6)


def test_version_1_is_read() -> None:
    plan = peg_plan()
    data = json.loads(plan.to_json())
    for item in [*data["activations"], *data["weights"]]:
        item["grid"].pop("kind")
    for item in data["weights"]:
        del item["group"], item["integers"]
    old = {"version": 1, "activations": data["activations"], "weights": data["weights"]}
    assert QuantPlan.from_json(json.dumps(old)) == plan


def test_planning_again_gives_the_same_fingerprint() -> None:
    assert peg_plan().fingerprint == peg_plan().fingerprint


def test_one_number_changes_the_fingerprint() -> None:
    plan = peg_plan()
    first = plan.activations[0]
    moved = replace(first, hi=(first.hi[0] * (1 + 1e-6),))
    changed = replace(plan, activations=(moved, *plan.activations[1:]))
    assert changed != plan
    assert changed.fingerprint != plan.fingerprint


def test_immutable() -> None:
    plan = peg_plan()
    assert {plan: 1}[QuantPlan.from_json(plan.to_json())] == 1
    with pytest.raises(FrozenInstanceError):
        plan.weights = ()  # type: ignore[misc]


def test_the_empty_plan_is_fp32s() -> None:
    assert QuantPlan.from_json(QuantPlan().to_json()) == QuantPlan()
    keep_all = MixedPrecision(keep=("*",), format="fp32")
    assert plan_of(keep_all, sites_of(tiny_model()), {}, (), Bits(), MinMax()) == QuantPlan()


def test_ranges_that_are_no_numbers_are_not_written() -> None:
    weight = WeightQuant(
        parameter="w", grid=AffineGrid(bits=8, symmetric=True), axis=None, lo=(float("nan"),), hi=(1.0,)
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        QuantPlan(weights=(weight,)).to_json()


@pytest.mark.parametrize("axis, shape", [(None, (1, 1)), (0, (3, 1)), (1, (1, 3))])
def test_weight_ranges_broadcast(axis: int | None, shape: tuple[int, int]) -> None:
    ends = (1.0,) if axis is None else (1.0, 2.0, 3.0)
    weight = WeightQuant(parameter="w", grid=AffineGrid(bits=8, symmetric=True), axis=axis, lo=ends, hi=ends)
    assert [end.shape for end in weight_ranges(weight, ndim=2)] == [shape, shape]


def _edited(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(peg_plan().to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.update(version=3), "not a quantlab plan of version 1 or 2"),
        (lambda data: data.pop("version"), "not a quantlab plan of version 1"),
        (lambda data: data.pop("weights"), "not a quantlab plan: 'weights'"),
        (lambda data: data.update(extra=1), "not a quantlab plan: .*extra"),
        (lambda data: data["activations"][0].update(extra=1), "not a quantlab plan: .*extra"),
        (lambda data: data["activations"][0].pop("grid"), "not a quantlab plan: 'grid'"),
        (lambda data: data["activations"][0]["tap"].pop("at"), "not a quantlab plan: .*'at'"),
        (
            lambda data: data["weights"][0]["grid"].update(bits=40),
            "bits must be a whole number in 2..16, got 40",
        ),
        (lambda data: data["weights"][0]["grid"].update(levels=40), "not a quantlab plan: .*levels"),
        (lambda data: data.update(activations=[1]), "not a quantlab plan"),
    ],
)
def test_bad_plans(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantPlan.from_json(_edited(change))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"plan"'])
def test_bad_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"plan|Expecting"):
        QuantPlan.from_json(text)
