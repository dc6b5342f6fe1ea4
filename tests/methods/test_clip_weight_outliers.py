"""Clipping the few largest weights: exactly those, to exactly what it says, and the ranges follow."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import logits, padded, settings_of, sites_of, tiny_model
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import edited_weights, insert, quantized_weights
from quantlab.methods.bits import Bits
from quantlab.methods.clip_weight_outliers import ClipWeightOutliers, limits
from quantlab.methods.method import plan_weights
from quantlab.methods.per_site import PerSite
from quantlab.methods.uniform import Uniform
from quantlab.plan.plan import QuantPlan
from quantlab.storage.memo import Memo
from quantlab.trial.planning import make_plan

PLANTED = {
    "bert.encoder.layer.0.output.dense.weight": 40.0,
    "bert.encoder.layer.1.attention.self.query.weight": -30.0,
}


def planted() -> PreTrainedModel:
    """One huge weight in each of two matrices, in standard deviations of what the matrix has without it."""
    model = tiny_model()
    for name, sigmas in PLANTED.items():
        weight = model.get_parameter(name).data
        weight[3, 5] = sigmas * weight.std()
    return model


@given(seed=st.integers(0, 1000), sigmas=st.floats(1, 4), count=st.none() | st.integers(0, 30))
def test_limits_clip_exactly_the_largest(seed: int, sigmas: float, count: int | None) -> None:
    """Against numpy, matrix by matrix: as many weights change as are asked for, the farthest out, and no
    other."""
    random = np.random.default_rng(seed)
    weights = {
        f"w{i}": torch.from_numpy(random.standard_t(3, (9, 7)).astype(np.float32)) * 10.0**i for i in range(3)
    }
    far = [
        (abs(value) / float(w.std()), name) for name, w in weights.items() for value in w.flatten().tolist()
    ]
    wanted = sorted((one for one in far if one[0] > sigmas * (1 + 1e-6)), reverse=True)[:count]
    found = limits(weights, sigmas, count)
    changed = {name: int((weights[name].abs() > found[name]).sum()) for name in found}
    assert changed == {name: sum(one[1] == name for one in wanted) for name in {one[1] for one in wanted}}
    for name, limit in found.items():
        least = sigmas * float(weights[name].std())
        inside = weights[name].abs()[weights[name].abs() <= limit].max()
        assert limit == pytest.approx(max(least, float(inside)), rel=1e-6)


def test_planted_weights_are_found_first() -> None:
    model = planted()

    def clipped(**settings: float) -> set[str]:
        return {edit.parameter for edit in ClipWeightOutliers(**settings).edits(model, Bits())}  # type: ignore[arg-type]

    assert clipped(sigmas=6, count=1) == {next(iter(PLANTED))}
    assert clipped(sigmas=6, count=2) == set(PLANTED)
    assert clipped(sigmas=50) == clipped(sigmas=6, count=0) == set()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("estimator", ["minmax", "mse"])
def test_the_plan_has_the_edited_weights_ranges(granularity: str, estimator: str) -> None:
    """Planning with the method is planning the clipped network without it."""
    model, bits = planted(), Bits(weight_granularity=granularity, weight_estimator=estimator)
    method = ClipWeightOutliers(sigmas=6)
    base = QuantPlan(edits=method.edits(model, bits))
    plan = plan_weights(model, method, bits, MinMax(), base)
    with edited_weights(model, base):
        assert plan == plan_weights(model, Uniform(), bits, MinMax())
    assert plan != plan_weights(model, Uniform(), bits, MinMax())


def test_the_quantized_network_is_the_clipped_one() -> None:
    model, bits, batch = planted(), Bits(weights=16), padded()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = ClipWeightOutliers(sigmas=6)
    base = QuantPlan(edits=method.edits(model, bits))
    with edited_weights(model, base):
        expected = logits(model, batch)
    with insert(model, replace(base, weights=plan_weights(model, method, bits, MinMax(), base))):
        torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-3)
    assert (logits(model, batch) - expected).abs().max() > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_method_over_it_clips_as_well() -> None:
    base = ClipWeightOutliers(sigmas=6)
    over = PerSite(base=base, rules=({"match": "0.ffn.out", "bits": "fp16"},))
    assert over.edits(planted(), Bits()) == base.edits(planted(), Bits())


@pytest.mark.parametrize("weights", [32, "fp16"])
def test_weights_without_a_grid_are_refused(weights: int | str) -> None:
    with pytest.raises(ValueError, match="bits.weights must be 2..16"):
        ClipWeightOutliers(sigmas=6).edits(planted(), Bits(weights=weights))


@pytest.mark.parametrize(
    "bad", [{"sigmas": -1}, {"sigmas": "6"}, {"sigmas": 6, "count": -1}, {"sigmas": 6, "count": 1.5}]
)
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"method\.(sigmas|count)"):
        ClipWeightOutliers(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("through", ["fp32", "quantized_weights"])
def test_activations_are_calibrated_in_the_clipped_network(through: str) -> None:
    model, batches, sites = planted(), [padded()], sites_of(planted())
    settings = settings_of(
        method=ClipWeightOutliers(sigmas=6), bits=Bits(), calibration=MinMax(through=through)
    )
    material = SimpleNamespace(model=model, calibration_batches=lambda _: batches, observed=Memo())
    _, sketches = make_plan(settings, material, sites, observe(model, sites, batches))  # type: ignore[arg-type]
    plan = QuantPlan(edits=settings.method.edits(model, settings.bits))
    if through != "fp32":
        weights = plan_weights(model, settings.method, settings.bits, settings.calibration, plan)
        plan = replace(plan, weights=weights)
    with quantized_weights(model, plan):
        expected = observe(model, sites, batches)
    assert all(torch.equal(sketch.histogram, expected[name].histogram) for name, sketch in sketches.items())
