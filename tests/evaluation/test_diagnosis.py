"""What a site's quantization alone costs, against the same computed directly."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import FAMILIES, GEMM, logits, padded, plan_of, settings_of, sites_of, tiny_model
from torch import Tensor

from quantlab.calibration.estimators import MinMax, Percentile
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert, quantizer, snap_weight
from quantlab.evaluation.diagnosis import site_sqnr_db, site_table
from quantlab.methods.bits import Bits
from quantlab.methods.clip_weight_outliers import ClipWeightOutliers
from quantlab.methods.method import plan_weights
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Fp32, Uniform
from quantlab.plan.plan import QuantPlan
from quantlab.quant.sqnr import energy, ratio_db, sqnr_db
from quantlab.storage.memo import Memo
from quantlab.trial.planning import diagnose, make_plan

BATCHES = [padded(), padded((3, 7, 5), seed=1)]
BITS = Bits(weights=4, activations=4)
COLUMNS = [
    "name",
    "kind",
    "grid",
    "ranges",
    "lo",
    "hi",
    "seen_min",
    "seen_max",
    "kurtosis",
    "sqnr_db",
    "seen_in",
]


def planned(bits: Bits = BITS, method: Uniform | Peg | Fp32 | None = None) -> QuantPlan:
    model, method, calibration = (
        tiny_model(),
        method or Peg(sites=("*.ffn.sum",), k=4),
        Percentile(percentile=99),
    )
    sites = sites_of(model)
    weights = plan_weights(model, method, bits, calibration)
    return plan_of(method, sites, observe(model, sites, BATCHES), weights, bits, calibration)


@pytest.mark.parametrize(
    "site, module, at",
    [
        ("1.ffn.sum", "bert.encoder.layer.1.output.LayerNorm", "input"),
        ("0.attn.query", "bert.encoder.layer.0.attention.self.query", "output"),
        ("0.ffn.mid", "bert.encoder.layer.0.output.dense", "input"),
        ("head.out", "classifier", "output"),
    ],
)
def test_sqnr_of_a_site(site: str, module: str, at: str) -> None:
    model, plan, seen = tiny_model(), planned(), []
    (item,) = (item for item in plan.activations if item.site == site)
    submodule = model.get_submodule(module)
    if at == "input":
        submodule.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    else:
        submodule.register_forward_hook(lambda _, __, output: seen.append(output))
    signal = noise = 0.0
    for batch in BATCHES:
        logits(model, batch)
        x = seen.pop()
        error = x - quantizer(item, model.device)(x)
        if x.ndim == 3:
            mask = batch.inputs["attention_mask"].bool()
            x, error = x[mask], error[mask]
        signal, noise = (
            signal + x.double().square().sum().item(),
            noise + error.double().square().sum().item(),
        )
    sqnr = site_sqnr_db(tiny_model(), plan, sites_of(model), BATCHES)
    assert sqnr[site] == pytest.approx(10 * math.log10(signal / noise), rel=1e-9)
    assert sqnr.keys() == {item.site for item in plan.activations}


def test_sqnr_of_probabilities_leaves_padding_out() -> None:
    model, plan, batch = tiny_model(), planned(), padded((4, 2))
    (item,) = (item for item in plan.activations if item.site == "0.attn.probs")
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        probs = model(**batch.inputs, output_attentions=True).attentions[0]
    rows = [(probs[0], 4), (probs[1], 2)]
    x = torch.cat([prob[:, :length, :length].flatten() for prob, length in rows])
    expected = sqnr_db(x, quantizer(item, model.device)(x))
    assert site_sqnr_db(model, plan, sites_of(model), [batch])["0.attn.probs"] == pytest.approx(expected)


def test_sites_do_not_see_each_others_noise() -> None:
    model, plan = tiny_model(), planned()
    together = site_sqnr_db(model, plan, sites_of(model), BATCHES)
    alone = QuantPlan(activations=plan.activations[-1:])
    assert site_sqnr_db(model, alone, sites_of(model), BATCHES) == {"head.out": together["head.out"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_more_bits_have_a_better_sqnr(family: str) -> None:
    """Each bit is worth 6 dB at every site while nothing is clipped."""
    model = tiny_model(family)
    sites, calibration = sites_of(model, GEMM), MinMax()
    sketches = observe(model, sites, BATCHES)
    few, many = (
        site_sqnr_db(
            model,
            plan_of(Uniform(), sites, sketches, (), Bits(activations=bits), calibration),
            sites,
            BATCHES,
        )
        for bits in (8, 12)
    )
    gains = [many[name] - few[name] for name in few]
    assert np.median(gains) == pytest.approx(4 * 6.02, abs=1)
    assert min(gains) > 15


def test_table() -> None:
    model, plan = tiny_model(), planned()
    sites, before = sites_of(model), logits(model, BATCHES[0])
    sketches = observe(model, sites, BATCHES)
    sqnr = site_sqnr_db(model, plan, sites, BATCHES)
    table = site_table(model, plan, sketches, sqnr, "fp32").set_index("name", drop=False)
    assert list(table.columns) == COLUMNS
    assert list(table.name) == [item.site for item in plan.activations] + [
        item.parameter for item in plan.weights
    ]
    item = next(item for item in plan.activations if item.site == "1.ffn.sum")
    row, sketch = table.loc["1.ffn.sum"], sketches["1.ffn.sum"]
    assert row.tolist()[1:6] == ["activation", "int4 asymmetric", 4, min(item.lo), max(item.hi)]
    assert (row.seen_min, row.seen_max) == (sketch.min.min().item(), sketch.max.max().item())
    assert row["kurtosis"] == sketch.kurtosis()
    assert (row.sqnr_db, row.seen_in) == (sqnr["1.ffn.sum"], "fp32")
    weight, value = plan.weights[0], model.get_parameter(plan.weights[0].parameter)
    row = table.loc[weight.parameter]
    assert row.tolist()[1:8] == [
        "weight",
        "int4 symmetric",
        1,
        weight.lo[0],
        weight.hi[0],
        value.min(),
        value.max(),
    ]
    assert row.sqnr_db == sqnr_db(value, snap_weight(value, weight))
    assert torch.equal(logits(model, BATCHES[0]), before)


def test_table_of_float_formats() -> None:
    model, plan = tiny_model(), planned(Bits(weights="bf16", activations="fp16"), Uniform())
    sites = sites_of(model)
    sqnr = site_sqnr_db(model, plan, sites, BATCHES)
    table = site_table(model, plan, observe(model, sites, BATCHES), sqnr, "fp32")
    assert set(table.ranges) == {0}
    assert table.lo.isna().all()
    assert table.hi.isna().all()
    assert (table.sqnr_db > 40).all()


def test_table_of_the_empty_plan() -> None:
    assert site_table(tiny_model(), planned(method=Fp32()), {}, {}, "fp32").empty


NETWORKS = {
    "fp32": (Uniform(), "fp32", "fp32"),
    "clipped": (ClipWeightOutliers(sigmas=2), "fp32", "edited weights"),
    "clipped, then quantized": (ClipWeightOutliers(sigmas=2), "quantized_weights", "quantized weights"),
    "quantized weights": (Uniform(), "quantized_weights", "quantized weights"),
    "quantized": (Uniform(), "quantized", "quantized weights, earlier sites quantized"),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_sites_are_looked_at_in_the_network_that_their_ranges_were_seen_in(case: str) -> None:
    """The SQNR against tensors that plain hooks collect in that network, made by hand."""
    method, through, name = NETWORKS[case]
    model, bits, calibration = tiny_model(), Bits(weights=4, activations=4), MinMax(through=through)
    settings = settings_of(method=method, bits=bits, calibration=calibration)
    material = SimpleNamespace(model=model, calibration_batches=lambda _: BATCHES, observed=Memo())
    sites = sites_of(model)
    plan, sketches = make_plan(settings, material, sites, observe(model, sites, BATCHES))  # type: ignore[arg-type]
    table = diagnose(settings, material, sites, plan, sketches).set_index("name")  # type: ignore[arg-type]
    assert set(table.seen_in) == {name, "checkpoint"}

    item = next(item for item in plan.activations if item.site == "1.ffn.sum")
    earlier = plan.activations[: plan.activations.index(item)] if through == "quantized" else ()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    weights = {name: plan.edited(name, weight) for name, weight in weights.items()}
    if through != "fp32":
        weights |= {one.parameter: snap_weight(weights[one.parameter], one) for one in plan.weights}
    by_hand = tiny_model()
    by_hand.load_state_dict(by_hand.state_dict() | weights)
    signal = noise = 0.0
    with insert(by_hand, QuantPlan(activations=earlier)):
        seen: list[Tensor] = []
        module = by_hand.get_submodule(item.tap.module)
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        for batch in BATCHES:
            logits(by_hand, batch)
            x = seen.pop()[batch.inputs["attention_mask"].bool()]
            signal, noise = signal + energy(x), noise + energy(x - quantizer(item, by_hand.device)(x))
    assert table.loc["1.ffn.sum"].sqnr_db == pytest.approx(ratio_db(signal, noise), rel=1e-6)
    name = plan.weights[0].parameter
    value = plan.edited(name, tiny_model().get_parameter(name))
    assert table.loc[plan.weights[0].parameter].sqnr_db == sqnr_db(value, snap_weight(value, plan.weights[0]))


@pytest.mark.parametrize(
    "x, x_hat, decibels",
    [
        ([3.0, 4.0], [3.0, 4.5], 20.0),  # 25 / 0.25
        ([1.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, -2.0], [1.0, -2.0], math.inf),
        ([0.0, 0.0], [0.0, 1.0], -math.inf),
        ([0.0, 0.0], [0.0, 0.0], math.inf),
    ],
)
def test_decibels(x: list[float], x_hat: list[float], decibels: float) -> None:
    assert sqnr_db(torch.tensor(x), torch.tensor(x_hat)) == pytest.approx(decibels)


def test_energy_is_summed_in_float64() -> None:
    x = torch.full((1000,), 1e30)  # its square is beyond FP32
    assert energy(x) == pytest.approx(1e63)
    assert ratio_db(energy(x), energy(x / 10)) == pytest.approx(20)
