"""Roundings of whole networks: what they choose is what the network that they quantize asks for."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import ALL, GEMM, logits, padded, sites_of, state, tied_decoder, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.moments import Moments, moments
from quantlab.calibration.probe import Probe, observe
from quantlab.engines.insert import edited_weights, insert
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_site, plan_weights, weight_planners
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.network.taps import ModuleInput, ModuleOutput, tapped
from quantlab.plan.edits import Add, Clip
from quantlab.plan.plan import QuantPlan, SiteTransform
from quantlab.plan.quantizers import WeightQuant
from quantlab.quant.basis import Diagonal, Hadamard
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.rounding.adaround import AdaRound
from quantlab.rounding.error_correction import ErrorCorrection
from quantlab.rounding.gptq import Gptq, factor, gptq, output_errors
from quantlab.rounding.in_order import InOrder, rows_of
from quantlab.rounding.rounding import Rounding

BATCHES = [padded((9, 4, 1), 0), padded((6, 2), 1), padded((5, 5), 2)]
W4A32 = Bits(weights=4, activations=32, weight_granularity="channel")
W4A8 = Bits(weights=4, activations=8, weight_granularity="channel")
QUICK = AdaRound(iterations=20, learning_rate=1e-2, rows=30, batch_rows=8)
ROUNDINGS = [Gptq(), Gptq(inputs="fp32", act_order=True), QUICK, ErrorCorrection()]


def probe_of(model: PreTrainedModel, bits: Bits, placement: Placement = GEMM) -> Probe:
    sites, method, calibration = sites_of(model, placement), Uniform(), MinMax()

    def quantizer_of(site, sketch):  # type: ignore[no-untyped-def]
        spec = method.site_spec(site, bits)
        return plan_site(site, spec, sketch, calibration) if spec else None

    return Probe(
        model=model,
        sites=sites,
        batches=BATCHES,
        count_padding=False,
        sketches=observe(model, sites, BATCHES),
        weight_planners=weight_planners(model, method, bits, calibration),
        plan_site=quantizer_of,
    )


def rounded(
    model: PreTrainedModel,
    rounding: Rounding,
    bits: Bits,
    placement: Placement = GEMM,
    base: QuantPlan | None = None,
) -> QuantPlan:
    """The plan of weights after a rounding, with the sites that a trial would give it."""
    probe, base = probe_of(model, bits, placement), base or QuantPlan()
    weights = plan_weights(model, Uniform(), bits, MinMax(), base)
    plan = rounding.round(probe, replace(base, weights=weights))
    views = {name: basis.forward for name, basis in plan.site_bases.items()}
    sketches = observe(model, probe.sites, BATCHES, views=views)
    return replace(plan, activations=Uniform().activations(probe.sites, sketches, bits, MinMax()))


def seen(model: PreTrainedModel, tap: ModuleInput | ModuleOutput) -> Moments:
    """The moments of a tap over all batches, without padding, in the model as it is."""
    found: list[Moments] = []

    def look(mask: Tensor, x: Tensor) -> Tensor:
        found.append(moments(tap.elements(x, mask)))
        return x

    for batch in BATCHES:
        with (
            tapped(model, {tap: partial(look, batch.inputs["attention_mask"].bool())}),
            torch.no_grad(),
        ):
            model(**batch.inputs)
    return sum(found[1:], start=found[0])


def chosen(plan: QuantPlan) -> dict[str, WeightQuant]:
    """The weights whose integers are stored, by the Linear's path."""
    return {x.parameter.removesuffix(".weight"): x for x in plan.weights if x.integers is not None}


def bases(model: PreTrainedModel) -> QuantPlan:
    """A rotation where query, key and value read, and scales and shifts in the first feed-forward block."""
    random = torch.Generator().manual_seed(0)
    probe = probe_of(model, W4A8)
    signs = torch.where(torch.rand(32, generator=random) < 0.5, -1.0, 1.0)
    scales, shift = torch.rand(64, generator=random) + 0.5, torch.randn(64, generator=random) * 0.1
    kinds = {
        "0.attn.in": Hadamard(signs=FrozenTensor(signs), block=32),
        "0.ffn.mid": Diagonal(FrozenTensor(scales), FrozenTensor(shift)),
    }
    transforms = tuple(
        SiteTransform(site=site, basis=basis, weights=tuple(f"{path}.weight" for path in probe.readers[site]))
        for site, basis in kinds.items()
    )
    return QuantPlan(transforms=transforms, edits=(Clip(parameter="bert.pooler.dense.weight", limit=0.3),))


@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
@pytest.mark.parametrize("based", [False, True], ids=["plain", "bases"])
def test_gptq_is_of_the_inputs_in_the_network_that_the_plan_makes(placement: Placement, based: bool) -> None:
    """Every weight's integers follow from what its Linear reads once all before it is quantized."""
    model = tiny_model()
    if based and placement is ALL:
        pytest.skip("bases are of operands")
    plan = rounded(model, Gptq(), W4A8, placement, bases(model) if based else None)
    found = chosen(plan)
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert found.keys() == linears
    for path, item in found.items():
        others = tuple(other for other in plan.weights if other.parameter != item.parameter)
        basis = plan.weight_bases.get(item.parameter)
        with edited_weights(model, plan):
            rows = rows_of(model, item, plan)
        with insert(model, replace(plan, weights=others)):
            tap = ModuleInput(path)
            gram = in_basis(model, tap, basis).gram if basis else seen(model, tap).gram
        expected = gptq(rows.weight, gram, factor(gram), rows.scale, rows.zero_point, rows.grid)
        assert item.integers is not None
        assert torch.equal(item.integers.tensor, expected), path


def in_basis(model: PreTrainedModel, tap: ModuleInput, basis: object) -> Moments:
    """:func:`seen`, in a basis."""
    found: list[Moments] = []

    def look(mask: Tensor, x: Tensor) -> Tensor:
        found.append(moments(basis.forward(tap.elements(x, mask))))  # type: ignore[attr-defined]
        return x

    for batch in BATCHES:
        with tapped(model, {tap: partial(look, batch.inputs["attention_mask"].bool())}), torch.no_grad():
            model(**batch.inputs)
    return sum(found[1:], start=found[0])


@pytest.mark.parametrize(
    "bits", [W4A32, replace(W4A32, weights=3), replace(W4A32, weight_granularity="tensor")]
)
def test_gptq_changes_no_output_more_than_nearest_does(bits: Bits) -> None:
    model = tiny_model(layers=1)
    plan = rounded(model, Gptq(inputs="fp32"), bits)
    for path, item in chosen(plan).items():
        rows, gram = rows_of(model, item, plan), seen(model, ModuleInput(path)).gram
        before, after = (
            float(output_errors(rows.values(q) - rows.weight, gram).sum())
            for q in (rows.nearest, item.rounded(rows.weight))
        )
        assert after < before, path


@pytest.mark.parametrize("rounding", [AdaRound(iterations=0), ErrorCorrection(strength=0, bias=False)])
def test_roundings_that_do_nothing_are_nearest(rounding: InOrder) -> None:
    model = tiny_model(layers=1)
    plain, plan = rounded(model, Rounding(), W4A8), rounded(model, rounding, W4A8)
    assert chosen(plan) and not chosen(plain)
    with insert(model, plain):
        expected = logits(model, BATCHES[0])
    with insert(model, plan):
        assert torch.equal(logits(model, BATCHES[0]), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda rounding: type(rounding).__name__)
def test_a_rounding_leaves_the_model_as_it_was_and_is_the_same_each_time(rounding: InOrder) -> None:
    model = tiny_model(layers=1)
    before, base = state(model), bases(model)
    first = rounded(model, rounding, W4A8, base=base)
    assert state(model) == before
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert rounded(model, rounding, W4A8, base=base).fingerprint == first.fingerprint
    finally:
        torch.set_num_threads(threads)
    assert QuantPlan.from_json(first.to_json(), first.arrays) == first
    with insert(model, first, "integer"):
        integer = logits(model, BATCHES[0])
    with insert(model, first):
        assert torch.allclose(logits(model, BATCHES[0]), integer, atol=0.05)


def test_roundings_change_logits_less_than_nearest() -> None:
    model = tiny_model(layers=1)
    expected = logits(model, BATCHES[0])

    def distance(rounding: Rounding) -> float:
        with insert(model, rounded(model, rounding, W4A32)):
            return float((logits(model, BATCHES[0]) - expected).norm())

    nearest = distance(Rounding())
    for rounding in (Gptq(), replace(QUICK, iterations=150), ErrorCorrection(strength=1, damping=0.01)):
        assert distance(rounding) < nearest, rounding


def test_bias_correction_keeps_every_mean_of_outputs() -> None:
    model = tiny_model(layers=1)
    bits = replace(W4A8, rules=({"match": "*.attn.[qkv]*", "bits": 32},))  # sites at outputs of Linears
    plan = rounded(model, ErrorCorrection(), bits, base=bases(model))
    corrected = {edit.parameter.removesuffix(".bias") for edit in plan.edits if isinstance(edit, Add)}
    assert corrected == chosen(plan).keys()
    with edited_weights(model, bases(model)):
        expected = {path: seen(model, ModuleOutput(path)) for path in corrected}
    with insert(model, plan):
        for path, moment in expected.items():
            got = seen(model, ModuleOutput(path))
            assert torch.allclose(got.total / got.count, moment.total / moment.count, atol=2e-5), path


def test_shared_weights_embeddings_and_fp32_weights_stay_as_they_are() -> None:
    decoder = tied_decoder().requires_grad_(False).eval()
    decoder.config.use_cache = False
    bits = replace(W4A32, embeddings=4, rules=({"match": "*.up_proj.weight", "bits": 32},))
    ids = [batch.inputs["input_ids"] % 12 for batch in BATCHES]
    inputs = [
        replace(batch, inputs={**batch.inputs, "input_ids": one})
        for batch, one in zip(BATCHES, ids, strict=True)
    ]
    probe = replace(probe_of(tiny_model(layers=1), W4A32), model=decoder, sites=(), batches=inputs)
    plan = QuantPlan(weights=plan_weights(decoder, Uniform(), bits, MinMax()))
    names = {f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"}
    names |= {f"model.layers.0.mlp.{x}_proj" for x in ("gate", "down")}
    found = Gptq().round(probe, plan)
    assert chosen(found).keys() == names
    assert {x.parameter for x in found.weights} == {x.parameter for x in plan.weights}
    assert Gptq().round(probe, QuantPlan()) == QuantPlan()
    everything_float = QuantPlan(
        weights=plan_weights(decoder, Uniform(), Bits(weights="fp16", activations=32), MinMax())
    )
    assert Gptq().round(probe, everything_float) == everything_float


def test_wide_columns_have_no_part() -> None:
    model, name = tiny_model(layers=1), "bert.encoder.layer.0.output.dense"
    probe = probe_of(model, W4A32)
    wide = {f"{name}.weight": (3, 40)}
    weights = plan_weights(model, Uniform(), W4A32, MinMax(), wide=wide)
    plan = Gptq(inputs="fp32").round(probe, QuantPlan(weights=weights))
    item, value = chosen(plan)[name], model.get_parameter(f"{name}.weight").data
    narrow = [column for column in range(64) if column not in (3, 40)]
    gram = seen(model, ModuleInput(name)).gram[narrow][:, narrow]
    scale, zero_point = (x.expand(32, 62) for x in item.parameters(value))
    expected = gptq(value[:, narrow], gram, factor(gram), scale, zero_point, item.grid)  # type: ignore[arg-type]
    assert item.integers is not None
    assert torch.equal(item.integers.tensor[:, narrow].float(), expected)
    assert torch.equal(item.snap(value)[:, [3, 40]], value[:, [3, 40]].half().float())


def test_the_network_of_the_last_rounding_does_not_reach_the_next() -> None:
    model = tiny_model(layers=1)
    copied = copy.deepcopy(model)
    rounded(model, Gptq(), W4A8)
    assert rounded(model, QUICK, W4A8) == rounded(copied, QUICK, W4A8)


@pytest.mark.parametrize(
    "make, message",
    [
        (partial(Gptq, damping=0), "rounding.damping must be above 0, got 0"),
        (partial(Gptq, inputs="quantised"), r"rounding.inputs must be one of .* \(did you mean 'quantized'"),
        (partial(Gptq, block=0), "rounding.block must be a whole number of at least 1, got 0"),
        (partial(Gptq, act_order=2), "rounding.act_order must be one of True, False; got 2"),
        (partial(AdaRound, iterations=-1), "rounding.iterations must be a whole number of at least 0"),
        (partial(AdaRound, learning_rate=0), "rounding.learning_rate must be above 0, got 0"),
        (partial(AdaRound, warm_up=1), r"rounding.warm_up must be a share in \[0, 1\), got 1"),
        (partial(ErrorCorrection, strength=1.5), r"rounding.strength must be in \[0, 1\], got 1.5"),
        (partial(ErrorCorrection, bias=None), "rounding.bias must be one of True, False; got None"),
    ],
)
def test_settings_are_checked(make: partial[InOrder], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
