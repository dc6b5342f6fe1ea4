"""Splits in a network: what stays wide, that nothing else changes, and both engines alike."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny import ALL, GEMM, logits, padded, settings_of, sites_of, state, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import Probe, observe
from quantlab.cli.conf_dir import CONF
from quantlab.engines import kernel_choice
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.dynamic import Dynamic
from quantlab.methods.grouped import Grouped
from quantlab.methods.method import Method
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.plan.fit import check_fits
from quantlab.plan.plan import QuantPlan, SiteTransform
from quantlab.quant.basis import Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.sqnr import sqnr_db
from quantlab.runtimes.onnx_file import check_exportable
from quantlab.splits.llm_int8 import LlmInt8
from quantlab.splits.outlier_residual import OutlierResidual
from quantlab.splits.split import SplitMethod
from quantlab.splits.top_channels import TopChannels
from quantlab.storage.memo import Memo
from quantlab.transforms.transform import Transform
from quantlab.trial.planning import make_plan

YAMLS = sorted((Path(CONF) / "split").glob("*.yaml"))
OUTLIERS = [3, 17]
NONE = SplitMethod()
SOME: dict[str, SplitMethod] = {
    "batch": LlmInt8(threshold=3.0),
    "calibration": LlmInt8(threshold=3.0, columns="calibration"),
    "top": TopChannels(k=2),
    "top in 8 bits": TopChannels(share=0.1, bits=8),
    "rest": OutlierResidual(),
}


@pytest.fixture
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "SLOW", math.inf)


def planted() -> PreTrainedModel:
    """A tiny BERT with two outlier channels at every FFN's input, which the FFN reads no more than others."""
    model = tiny_model()
    for layer in model.bert.encoder.layer:
        norm, dense = layer.attention.output.LayerNorm, layer.intermediate.dense
        norm.weight[OUTLIERS] *= 64
        norm.bias[OUTLIERS] *= 64
        dense.weight[:, OUTLIERS] /= 64
    return model


def planned(
    model: PreTrainedModel,
    split: SplitMethod,
    method: Method | None = None,
    placement: Placement = GEMM,
    bits: Bits | None = None,
    **settings: object,
) -> QuantPlan:
    batches, sites = [padded(), padded(seed=1)], sites_of(model, placement)
    config = settings_of(
        method=method or Uniform(), bits=bits or Bits(), calibration=MinMax(), split=split, **settings
    )
    material = SimpleNamespace(model=model, calibration_batches=lambda _: batches, observed=Memo())
    specs = {site.name: config.method.site_spec(site, config.bits) for site in sites}
    split.check(sites, {name: spec.grid if spec else None for name, spec in specs.items()})
    return make_plan(config, material, sites, observe(model, sites, batches))[0]  # type: ignore[arg-type]


def answers(model: PreTrainedModel, plan: QuantPlan, engine: str = "simulated") -> Tensor:
    with insert(model, plan, engine):
        return logits(model, padded())


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_every_choice_builds_and_plans(yaml: Path) -> None:
    split = instantiate(OmegaConf.load(yaml), _convert_="all")
    assert isinstance(split, SplitMethod) and hash(split) == hash(split)
    model = planted()
    before = state(model)
    plan = planned(model, split)
    check_fits(model, plan)
    assert answers(model, plan).isfinite().all() and state(model) == before
    assert planned(model, split) == plan and QuantPlan.from_json(plan.to_json(), plan.arrays) == plan


@pytest.mark.parametrize(
    "split",
    [LlmInt8(threshold=math.inf), LlmInt8(threshold=1e9, columns="calibration"), TopChannels(k=0)],
    ids=["infinite", "too high", "k=0"],
)
@pytest.mark.parametrize("method", [Uniform(), Dynamic()], ids=["static", "dynamic"])
def test_nothing_wide_is_the_plain_plan(split: SplitMethod, method: Method) -> None:
    model = planted()
    assert planned(model, split, method) == planned(model, NONE, method)


@pytest.mark.parametrize("engine", ["simulated", "integer"])
def test_a_threshold_that_nothing_reaches_is_plain_to_the_bit(engine: str, any_speed: None) -> None:
    model = planted()
    plain, split = (planned(model, one, Dynamic()) for one in (NONE, LlmInt8(threshold=1e9)))
    assert plain != split and torch.equal(answers(model, plain, engine), answers(model, split, engine))


@pytest.mark.parametrize("setting", SOME)
@pytest.mark.parametrize("method", [Uniform(), Dynamic()], ids=["static", "dynamic"])
@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_both_engines_give_the_same(
    setting: str, method: Method, placement: Placement, symmetric: bool, any_speed: None
) -> None:
    """Up to roundings that tip over after the first layer."""
    if setting == "rest" and isinstance(method, Dynamic):
        pytest.skip("the rest needs static grids")
    model = planted()
    plan = planned(model, SOME[setting], method, placement, Bits(symmetric=symmetric))
    simulated, integer = (answers(model, plan, engine) for engine in ("simulated", "integer"))
    assert sqnr_db(simulated, integer) > 30
    with insert(model, plan, "integer") as inserted:
        logits(model, padded())
    ran = [one.on for one in inserted.linears.values()]
    assert sum(not one.startswith("fp32: ") for one in ran) >= len(ran) - 2, ran
    assert any(("twice" if setting == "rest" else "wide columns in fp32") in one for one in ran), ran


def error_of_the_first(model: PreTrainedModel, split: SplitMethod, method: Method, bits: Bits) -> float:
    """SQNR of the first FFN's product in dB, with nothing quantized before it."""
    plan = planned(model, split, method, bits=bits)
    kept = tuple(item for item in plan.activations if item.site == "0.ffn.in")
    weights = tuple(item for item in plan.weights if item.parameter.endswith("0.intermediate.dense.weight"))
    assert kept and weights
    found: list[Tensor] = []
    dense = model.bert.encoder.layer[0].intermediate.dense
    handle = dense.register_forward_hook(lambda _, __, y: found.append(y.clone()))
    try:
        for chosen in (QuantPlan(), replace(plan, activations=kept, weights=weights)):
            answers(model, chosen)
    finally:
        handle.remove()
    return sqnr_db(*found)


@pytest.mark.parametrize("setting", SOME)
def test_a_planted_outlier_is_solved(setting: str) -> None:
    model, bits = planted(), Bits(weights=8, activations=6, weight_granularity="channel", symmetric=True)
    split = LlmInt8(threshold=20.0) if setting == "batch" else SOME[setting]
    plain, solved = (error_of_the_first(model, one, Uniform(), bits) for one in (NONE, split))
    assert solved > plain + 6, (plain, solved)


def test_wide_columns_multiply_fp16_weights_and_activations() -> None:
    """Two bits are as good as FP16 where every column is wide."""
    model, bits = planted(), Bits(weights=2, activations=2)
    for split in (LlmInt8(threshold=1e-9), TopChannels(share=0.999), TopChannels(k=32, sites=("*.ffn.in",))):
        assert error_of_the_first(model, split, Uniform(), bits) > 55, split


def test_frozen_columns_are_those_of_calibration_and_leave_the_ranges() -> None:
    model, bits = planted(), Bits(weight_granularity="channel")
    plan = planned(model, TopChannels(k=2, sites=("*.ffn.in",)), bits=bits)
    by_site, plain = (
        {item.site: item for item in one.activations} for one in (plan, planned(model, NONE, bits=bits))
    )
    split = by_site["0.ffn.in"].split
    assert split is not None and split.columns == tuple(OUTLIERS)
    assert max(by_site["0.ffn.in"].hi) < 0.2 * max(plain["0.ffn.in"].hi)
    wide = {weight.parameter: weight.wide for weight in plan.weights if weight.wide}
    assert set(wide.values()) == {tuple(OUTLIERS)} and all("intermediate.dense" in name for name in wide)
    assert all(one.split is None for name, one in by_site.items() if not name.endswith("ffn.in"))


class Halves(Transform):
    """A scale of 1/2 and shifts at the FFN's input."""

    def bases(self, probe: Probe) -> tuple[SiteTransform, ...]:
        basis = Diagonal(FrozenTensor(torch.full((32,), 0.5)), FrozenTensor(torch.linspace(-1, 1, 32)))
        return tuple(
            SiteTransform(site=site, basis=basis, weights=tuple(f"{path}.weight" for path in paths))
            for site, paths in probe.readers.items()
            if site.endswith("ffn.in")
        )


@pytest.mark.parametrize("engine", ["simulated", "integer"])
@pytest.mark.parametrize("setting", ["batch", "calibration"])
def test_in_a_basis(setting: str, engine: str, any_speed: None) -> None:
    model, bits = planted(), Bits(weight_granularity="channel")
    reference = logits(model, padded())
    plan = planned(model, SOME[setting], Dynamic(), bits=bits, transform=Halves())
    assert plan.transforms and sqnr_db(reference, answers(model, plan, engine)) > 20


@pytest.mark.parametrize(
    "split, method, bits, message",
    [
        (TopChannels(k=33, sites=("*.ffn.in",)), Uniform(), Bits(), "the 32 channels of 0.ffn.in, got 33"),
        (TopChannels(k=33), Uniform(), Bits(), "split.k must be at most the 32 channels of 0.attn.in"),
        (
            TopChannels(k=1, sites=("*.ffn.nn",)),
            Uniform(),
            Bits(),
            r"split.sites: '\*.ffn.nn' matches nothing",
        ),
        (
            LlmInt8(sites=("1.ffn.in",)),
            Uniform(),
            Bits(activations="fp16"),
            "split.sites has 1.ffn.in, which is fp16: only an integer grid is narrow",
        ),
        (LlmInt8(sites=("1.ffn.in",)), Uniform(), Bits(activations=32), "in FP32: only an integer grid"),
        (LlmInt8(sites=("0.attn.query",)), Uniform(), Bits(), "0.attn.query, which no Linear reads"),
        (OutlierResidual(), Dynamic(), Bits(), "needs grids that calibration fixes, but 0.attn.in has"),
        (OutlierResidual(), Peg(sites=("0.ffn.in",), k=4), Bits(), "outlier_residual needs one range a site"),
    ],
)
def test_bad_splits(split: SplitMethod, method: Method, bits: Bits, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(planted(), split, method, bits=bits)


@pytest.mark.parametrize(
    "split, method, message",
    [
        (LlmInt8(sites=("0.ffn.in",)), Uniform(), "as 0.ffn.in has: columns from 6 in fp16"),
        (TopChannels(k=2, sites=("0.ffn.in",)), Uniform(), "as 0.ffn.in has: 2 columns in fp16"),
        (NONE, Grouped(k=4, allocate_bits=True), "as 0.attn.in has: bits of its own for each group"),
    ],
)
def test_onnx_has_none_of_them(split: SplitMethod, method: Method, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_exportable(planned(planted(), split, method))


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        (
            TopChannels,
            {},
            "split.k or split.share says how many, and the other is null: got k=None and share=None",
        ),
        (TopChannels, {"k": 1, "share": 0.1}, "got k=1 and share=0.1"),
        (TopChannels, {"k": -1}, "split.k must be a whole number of at least 0, got -1"),
        (TopChannels, {"k": 1, "bits": 4}, "split.bits must be one of 8, 16; got 4"),
        (LlmInt8, {"threshold": 0}, "split.threshold must be above 0, got 0"),
        (LlmInt8, {"columns": "batches"}, r"one of batch, calibration; got 'batches' \(did you mean 'batch'"),
        (OutlierResidual, {"bits": 16}, r"split.bits must be a whole number in 2\.\.8, got 16"),
    ],
)
def test_bad_fields(kind: type[SplitMethod], fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)
