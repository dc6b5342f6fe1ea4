"""Alarms about calibration, placement, speed and size: each where its cause is planted, and silence
elsewhere."""

import os
from dataclasses import replace

import pytest
import torch
from planted import ASYMMETRIC, SITE, activation, calibrated, message, names, weight
from properties import heavy_tailed, sketched
from tiny import FAMILIES, tiny_model

from quantlab.kernels import native
from quantlab.network.architecture import all_sites
from quantlab.network.sites import Placement
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid, FloatGrid
from quantlab.quant.sketch import Sketch

BF16 = activation(FloatGrid(format="bf16"), lo=(), hi=())


def test_uncalibrated_site() -> None:
    unseen = {SITE: Sketch(channels=4)}
    expected = "calibration saw nothing at 1 of 1: 0.ffn.sum"
    assert message("uncalibrated_site", plan=BF16, sketches=unseen) == f"{expected} (never reached)"
    constant = {SITE: sketched(torch.full((9, 4), 2.5))}
    assert message("uncalibrated_site", sketches=constant) == f"{expected} (only 2.5)"
    assert not message("uncalibrated_site", plan=BF16)


@pytest.mark.parametrize("rows, raises", [(1, True), (8, True), (15, True), (16, False), (64, False)])
def test_few_calibration_rows(rows: int, raises: bool) -> None:
    text = message("few_calibration_rows", config=calibrated(samples=rows))
    assert text == (f"the ranges of 1 sites come from {rows} rows" if raises else "")
    for without_ranges in (QuantPlan(), BF16, weight(-1.0, 1.0)):
        assert not message("few_calibration_rows", config=calibrated(samples=rows), plan=without_ranges)


@pytest.mark.parametrize("rows, raises", [(31, True), (32, False)])
def test_fewer_rows_than_inputs(rows: int, raises: bool) -> None:
    model = tiny_model()  # 32 channels where the classifier reads
    seen = {site.name: sketched(torch.ones(99, site.channels)) for site in all_sites(model)}
    seen["head.mid"] = sketched(torch.ones(rows, 32))
    rounded = replace(weight(-1.0, 1.0).weights[0], integers=FrozenTensor(torch.zeros(2, 32)))
    plan = QuantPlan(weights=(rounded,))
    text = message("fewer_rows_than_inputs", model=model, sketches=seen, plan=plan)
    expected = "the integers of 1 weights come from fewer rows than they have inputs: classifier (31 rows, 32"
    assert text == (f"{expected} inputs)" if raises else "")
    assert not message("fewer_rows_than_inputs", model=model, sketches=seen, plan=weight(-1.0, 1.0))


@pytest.mark.parametrize("padding", ["included", "masked"])
def test_padding_counted(padding: str) -> None:
    assert bool(message("padding_counted", config=calibrated(padding=padding))) == (padding == "included")


@pytest.mark.parametrize("why", ["", "no C compiler: 'cc' is not on the path (set CC)"])
def test_kernels_missing(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: why)
    text = message("kernels_missing", model=tiny_model())
    assert text == (f"torch did the work of kernels.c, more slowly: {why}" if why else "")
    assert not message("kernels_missing", model=tiny_model(), plan=QuantPlan())


PUBLISHED = Placement(at="tensor", exclude=("*.attn.scores", "*.attn.probs", "*.attn.context"))


def floating(family: str, placement: Placement | None, dropped: str = "") -> str:
    """What is said where a placement's sites are quantized, less those whose name ends so."""
    model = tiny_model(family)
    sites = all_sites(model)
    picked = (
        [site for site in placement.select(sites) if not (dropped and site.name.endswith(dropped))]
        if placement
        else []
    )
    items = [
        ActivationQuant(site=site.name, tap=site.tap, grid=ASYMMETRIC, lo=(-9.0,), hi=(9.0,))
        for site in picked
    ]
    sketches = {site.name: sketched(heavy_tailed(50, 4)) for site in picked}
    return message(
        "products_in_float",
        plan=QuantPlan(activations=tuple(items)),
        sites=sites,
        sketches=sketches,
        model=model,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_products_in_float(family: str) -> None:
    for complete in (Placement(at="tensor"), Placement(at="operand"), None):
        assert floating(family, complete) == ""
    left = floating(family, PUBLISHED)
    assert left.startswith("4 of ") and left.endswith("attn.probs (2), attn.context (2)")


@pytest.mark.parametrize(
    "at, dropped, role",
    [
        ("tensor", "ffn.mid", "ffn.mid (2)"),
        ("operand", "attn.query", "attn.query (2)"),
        ("operand", "attn.in", "attn.in (2)"),
        ("operand", "head.in", "in (1)"),
        ("tensor", "embed.out", "attn.in (1)"),  # the first layer's
        ("tensor", "layer.out", "attn.in (1), in (1)"),  # the second layer's, and the head's
    ],
)
def test_an_input_left_out(at: str, dropped: str, role: str) -> None:
    assert floating("bert", Placement(at=at), dropped).endswith(f"stay as they are: {role}")


LATENCY = {"latency_p50_ms": 58.6}


def test_simulated_latency() -> None:
    simulated = {"engine": "simulated"}
    said = "p50 of 58.6 ms is that of FP32 arithmetic on quantized values, no integer latency"
    assert message("simulated_latency", tags=simulated, metrics=LATENCY) == said
    with_speed = LATENCY | {"speedup_vs_fp32": 0.98}
    assert (
        message("simulated_latency", tags=simulated, metrics=with_speed)
        == f"{said}; nor is 0.98 its speed-up"
    )
    assert not message("simulated_latency", tags=simulated)  # not timed
    for engine in ("integer", "fp32"):
        assert not message("simulated_latency", tags={"engine": engine}, metrics=with_speed)


SIZES = {"size_fp32_bytes": 417.7e6, "size_bytes": 110e6}


def test_size_not_smaller() -> None:
    plan = weight(-1.0, 1.0)
    assert not message("size_not_smaller", plan=plan, metrics=SIZES)
    assert message("size_not_smaller", plan=plan, metrics=SIZES | {"size_bytes": 418.3e6}) == (
        "1 weights are on grids of under 16 bits, but size_bytes is 418.3 MB, 100% of FP32's"
    )
    assert "size_onnx_bytes" in message(
        "size_not_smaller", plan=plan, metrics=SIZES | {"size_onnx_bytes": 418e6}
    )
    wide = weight(-1.0, 1.0, AffineGrid(bits=16, symmetric=False))
    for other in (wide, activation(), QuantPlan()):
        assert not message("size_not_smaller", plan=other, metrics=SIZES | {"size_bytes": 418.3e6})


@pytest.mark.parametrize("name", ["load_average_1m", "deployed_load_average_1m"])
def test_machine_busy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert not message("machine_busy", tags={name: "4.90"})
    assert (
        message("machine_busy", tags={name: "5.10"})
        == f"{name} was 5.1 on 4 processors when the profile began"
    )


@pytest.mark.parametrize("saturates", [True, False])
def test_runtime_saturates(saturates: bool) -> None:
    tags = {"runtime": "some 1.0", "runtime_saturates": str(saturates)}
    assert names(tags=tags) == (["runtime_saturates"] if saturates else [])


@pytest.mark.parametrize("fell_back", [True, False])
def test_runtime_fell_back(fell_back: bool) -> None:
    tags = {
        "runtime": "some 1.0",
        "runtime_fell_back": str(fell_back),
        "deployed_products": "0 integer; 9 float",
    }
    assert names(tags=tags) == (["runtime_fell_back"] if fell_back else [])
