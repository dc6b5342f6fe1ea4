"""What a plan does to a model while it is inserted, and that nothing of it stays."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import ALL, FAMILIES, GEMM, logits, padded, plan_of, sites_of, state, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import ENGINES, insert, quantized_weights, quantizer, snap_weight
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.network.taps import ModuleOutput, Probs, tap_of, tapped
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.grid import AffineGrid, FloatGrid

BITS = Bits(weights=8, activations=4, symmetric=False)
INT4 = AffineGrid(bits=4, symmetric=False)

families = pytest.mark.parametrize("family", FAMILIES)
placements = pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])


def planned(model: PreTrainedModel, placement: Placement = ALL, bits: Bits = BITS) -> QuantPlan:
    """A uniform plan with min-max ranges of one padded batch."""
    sites, calibration = sites_of(model, placement), MinMax()
    sketches = observe(model, sites, [padded()])
    return plan_of(
        Uniform(), sites, sketches, plan_weights(model, Uniform(), bits, calibration), bits, calibration
    )


@families
def test_no_op_functions_change_nothing(family: str) -> None:
    model, batch = tiny_model(family), padded()
    eager = logits(model, batch)
    taps = {tap for placement in (ALL, GEMM) for tap in (site.tap for site in sites_of(model, placement))}
    with tapped(model, dict.fromkeys(taps, Tensor.clone)):
        assert torch.equal(logits(model, batch), eager)


def test_an_empty_plan_changes_nothing() -> None:
    model, batch = tiny_model(), padded()
    eager = logits(model, batch)
    with insert(model, QuantPlan()) as inserted:
        assert torch.equal(logits(model, batch), eager)
    assert inserted.calls == {}


@families
@placements
def test_exit_restores_everything(family: str, placement: Placement) -> None:
    model, batch = tiny_model(family), padded()
    plan, before, eager = planned(model, placement), state(model), logits(model, batch)
    with insert(model, plan):
        assert not torch.equal(logits(model, batch), eager)
        assert state(model)["bits"] != before["bits"]
    assert state(model) == before
    assert torch.equal(logits(model, batch), eager)


def test_an_exception_inside_restores_everything() -> None:
    model, batch = tiny_model(), padded()
    plan, before, eager = planned(model), state(model), logits(model, batch)
    with pytest.raises(KeyboardInterrupt), insert(model, plan):
        logits(model, batch)
        raise KeyboardInterrupt
    assert state(model) == before
    assert torch.equal(logits(model, batch), eager)


BAD_WEIGHT = WeightQuant(parameter="bert.nowhere.weight", grid=INT4, axis=None, lo=(-1.0,), hi=(1.0,))
BAD_SITE = ActivationQuant(site="x", tap=ModuleOutput("bert.nowhere"), grid=INT4, lo=(-1.0,), hi=(1.0,))
BAD_PROBS = ActivationQuant(site="x", tap=Probs("bert.nowhere"), grid=INT4, lo=(-1.0,), hi=(1.0,))


@pytest.mark.parametrize(
    "add",
    [
        lambda plan: QuantPlan(activations=plan.activations, weights=(*plan.weights, BAD_WEIGHT)),
        lambda plan: QuantPlan(activations=(*plan.activations, BAD_SITE), weights=plan.weights),
        lambda plan: QuantPlan(activations=(*plan.activations, BAD_PROBS), weights=plan.weights),
    ],
    ids=["weight", "site", "attention"],
)
def test_a_plan_that_does_not_fit_leaves_nothing(add: Callable[[QuantPlan], QuantPlan]) -> None:
    model = tiny_model()
    plan, before = planned(model), state(model)
    with (
        pytest.raises(ValueError, match="the plan is of another model: this one has no "),
        insert(model, add(plan)),
    ):
        pytest.fail("the plan names a module that is not there")
    assert state(model) == before


def item(plan: QuantPlan, site: str) -> ActivationQuant:
    return next(item for item in plan.activations if item.site == site)


def changed(plan: QuantPlan, site: str, **fields: object) -> QuantPlan:
    """The plan with one site's fields changed."""
    made = replace(item(plan, site), **fields)
    return replace(plan, activations=tuple(made if old.site == site else old for old in plan.activations))


def second(plan: QuantPlan) -> QuantPlan:
    """The plan with another site on a tensor that it quantizes already."""
    return replace(
        plan, activations=(*plan.activations, replace(item(plan, "0.ffn.mid"), site="0.ffn.again"))
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (second, r"quantizes the input of bert\.\S+output\.dense twice, as 0\.ffn\.mid and as 0\.ffn\.again"),
        (lambda plan: replace(plan, weights=(*plan.weights, plan.weights[0])), r"quantizes bert\.\S+ twice"),
        (
            lambda plan: changed(plan, "0.ffn.out", groups=(0, 1, 1, 0)),
            r"another model: this one has no 0\.ffn\.out",
        ),
        (
            lambda plan: changed(plan, "0.ffn.out", lo=(-1.0,) * 4, hi=(1.0,) * 4),
            r"4 lower .* 0\.ffn\.out, not 1",
        ),
        (
            lambda plan: changed(plan, "0.ffn.out", groups=(1,) * 32),
            r"1 lower and 1 upper .* 0\.ffn\.out, not 2",
        ),
        (lambda plan: replace(plan, weights=(replace(plan.weights[0], axis=2),)), "another model"),
        (lambda plan: replace(plan, weights=(replace(plan.weights[0], axis=0),)), "another model"),
        (lambda plan: replace(plan, weights=(replace(plan.weights[0], hi=()),)), "1 lower and 0 upper ends"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_plan_fits_the_model_or_is_an_error(
    change: Callable[[QuantPlan], QuantPlan], message: str, engine: str
) -> None:
    model = tiny_model(layers=1)
    before = state(model)
    with pytest.raises(ValueError, match=message), insert(model, change(planned(model)), engine):
        pytest.fail("the plan does not fit")
    assert state(model) == before


def test_two_names_of_one_parameter_are_restored() -> None:
    model = tiny_model(layers=1)
    first, other = (
        model.bert.encoder.layer[0].attention.self.get_submodule(name) for name in ("query", "key")
    )
    other.weight = first.weight
    weights = [
        WeightQuant(
            parameter=f"bert.encoder.layer.0.attention.self.{name}.weight",
            grid=AffineGrid(bits=bits, symmetric=True),
            axis=None,
            lo=(-1.0,),
            hi=(1.0,),
        )
        for bits, name in ((8, "query"), (2, "key"))
    ]
    before = state(model)
    with quantized_weights(model, QuantPlan(weights=tuple(weights))):
        assert state(model)["bits"] != before["bits"]
    assert state(model) == before


@families
@placements
def test_every_quantizer_runs_once_a_forward(family: str, placement: Placement) -> None:
    model, batch = tiny_model(family), padded()
    sites = sites_of(model, placement)
    with insert(model, planned(model, placement)) as inserted:
        assert inserted.calls == {site.name: 0 for site in sites}
        logits(model, batch)
        logits(model, batch)
        assert inserted.calls == {site.name: 2 for site in sites}


@families
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_the_network_reads_is_on_the_grid(family: str, symmetric: bool) -> None:
    """Behind each quantizer a look at what came of it: no more values than the grid has, and zero among
    them."""
    bits = Bits(weights=8, activations=3, symmetric=symmetric)
    model, batch, seen = tiny_model(family), padded(), {}

    def watched(item: ActivationQuant) -> Callable[[Tensor], Tensor]:
        function = quantizer(item, model.device)

        def run(x: Tensor) -> Tensor:
            seen[item.site] = function(x)
            return seen[item.site]

        return run

    plan = planned(model, ALL, bits)
    with (
        quantized_weights(model, plan),
        tapped(model, {item.tap: watched(item) for item in plan.activations}),
    ):
        by_hand = logits(model, batch)
    with insert(model, plan):
        assert torch.equal(logits(model, batch), by_hand)
    assert set(seen) == {site.name for site in sites_of(model)}
    levels = 7 if symmetric else 8
    for item in plan.activations:
        grid = item.grid
        assert isinstance(grid, AffineGrid)
        scale, zero_point = grid.parameters(torch.tensor(item.lo), torch.tensor(item.hi))
        values = (torch.arange(grid.q_min, grid.q_max + 1) - zero_point) * scale
        assert len(values) == levels
        assert 0 in values
        assert torch.isin(seen[item.site], values).all(), item.site


def test_groups_of_channels() -> None:
    tap = ModuleOutput("bert.encoder.layer.0.output.LayerNorm")
    groups = tuple([0] * 30 + [1, 2])
    item = ActivationQuant(
        site="0.layer.out", tap=tap, grid=INT4, lo=(0, -3, 0), hi=(1.5, 0, 150.0), groups=groups
    )
    x_hat = quantizer(item, torch.device("cpu"))(torch.full((2, 5, 32), 1.23))
    assert x_hat[..., :30].unique().item() == pytest.approx(1.2)
    assert x_hat[..., 30].unique().item() == 0
    assert x_hat[..., 31].unique().item() == 0
    assert quantizer(item, torch.device("cpu"))(torch.full((2, 5, 32), 94.0))[0, 0, 31] == pytest.approx(90.0)


@pytest.mark.parametrize("at", ["scores", "probs"])
def test_groups_of_heads(at: str) -> None:
    tap = tap_of("bert.encoder.layer.0.attention.self", at)
    item = ActivationQuant(site="s", tap=tap, grid=INT4, lo=(0.0, 0.0), hi=(1.5, 15.0), groups=(0, 0, 1, 1))
    x_hat = quantizer(item, torch.device("cpu"))(torch.full((2, 4, 5, 5), 1.23))
    assert [head.unique().item() for head in x_hat.unbind(1)] == pytest.approx([1.2, 1.2, 1.0, 1.0])


@pytest.mark.parametrize("format", ["fp16", "bf16"])
def test_float_sites_are_casts(format: str) -> None:
    item = ActivationQuant(site="s", tap=ModuleOutput("classifier"), grid=FloatGrid(format=format))
    x = torch.randn(4, 5, 6)
    assert torch.equal(quantizer(item, torch.device("cpu"))(x), FloatGrid(format=format).snap(x))


def test_weights_are_on_their_grids_inside() -> None:
    model = tiny_model()
    plan = planned(model, ALL, Bits(weights=4, activations=32, weight_granularity="channel", norms=8))
    originals = {item.parameter: model.get_parameter(item.parameter).clone() for item in plan.weights}
    with insert(model, plan):
        for item in plan.weights:
            value = model.get_parameter(item.parameter)
            assert torch.equal(value, snap_weight(originals[item.parameter], item))
            slices = value[None] if item.axis is None else value.movedim(item.axis, 0)
            assert len(item.lo) == len(slices)
            assert max(len(part.unique()) for part in slices) <= 2**item.grid.bits - 1
            if item.axis is not None:
                assert len(value.unique()) > 2**item.grid.bits  # or one range for all would pass too
    quantized = {item.parameter for item in plan.weights}
    assert quantized == {name for name, value in model.named_parameters() if name.endswith("weight")}


def test_a_weight_in_a_float_format() -> None:
    value = torch.randn(3, 4)
    item = WeightQuant(parameter="w", grid=FloatGrid(format="bf16"), axis=None)
    assert torch.equal(snap_weight(value, item), value.bfloat16().float())


def test_residual_stays_in_fp32_under_gemm() -> None:
    """The residual sum less h is x: on the grid where the tensor is quantized, untouched where only the
    operand is."""
    batch, left = padded(), {}
    for name, placement in (("all", ALL), ("gemm", GEMM)):
        model = tiny_model()
        plan = planned(model, placement, Bits(weights=32, activations=3, symmetric=False))
        kept = QuantPlan(activations=tuple(item for item in plan.activations if item.site == "0.ffn.in"))
        layer = model.bert.encoder.layer[0]
        residuals, operands = [], []
        with insert(model, kept):
            # registered last, so that they see what quantization left
            layer.intermediate.dense.register_forward_pre_hook(
                lambda _, inputs, to=operands: to.append(inputs[0])
            )
            layer.output.register_forward_pre_hook(lambda _, inputs, to=residuals: to.append(inputs[1]))
            logits(model, batch)
        left[name] = (len(operands[0].unique()), len(residuals[0].unique()))
    assert left["all"] == (8, 8)
    assert left["gemm"][0] == 8
    assert left["gemm"][1] > 500
