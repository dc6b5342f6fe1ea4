"""Quantization-aware training: its network is the trial's, whatever the family, grid and basis."""

from typing import Any

import pytest
import torch
from families import CASES, batch_of, model_of
from tiny import ALL, GEMM, padded, planned, tiny_model

from quantlab.calibration.estimators import MinMax, PublishedPercentile
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.dynamic import Dynamic
from quantlab.methods.method import plan_weights
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.models import Recipe
from quantlab.network.sites import Placement
from quantlab.plan.plan import QuantPlan, SiteTransform
from quantlab.quant.basis import Diagonal, Hadamard
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.rounding.gptq import Gptq
from quantlab.rounding.rounding import Rounding
from quantlab.splits.split import SplitMethod
from quantlab.splits.top_channels import TopChannels
from quantlab.tasks.batching import Batch
from quantlab.training.qat import LearningNetwork, Qat

QAT = Qat(recipe=Recipe())


def plan_for(name: str, head: str, placement: Placement = ALL) -> QuantPlan:
    model, bits = model_of(name, head), Bits(weights=8, activations=8)
    inputs, _ = batch_of(head)
    batch = Batch(inputs=inputs, indices=torch.arange(2).numpy())
    sites = placement.select(all_sites(model))
    sketches = observe(model, sites, [batch])
    weights = plan_weights(model, Uniform(), bits, MinMax())
    return QuantPlan(activations=Uniform().activations(sites, sketches, bits, MinMax()), weights=weights)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_every_family_trains_through_the_trials_own_network(name: str, head: str) -> None:
    model, plan = model_of(name, head), plan_for(name, head)
    inputs, _ = batch_of(head)
    with torch.inference_mode(), insert(model, plan):
        wanted = model(**inputs).logits.clone()
    network = LearningNetwork(model, plan)
    model.requires_grad_(True)
    try:
        with network.tapped():
            logits = network.forward(**inputs).logits
            logits.square().mean().backward()
        assert torch.equal(logits.detach(), wanted)
        assert network.plan() == plan
        learned = [learned.growth.grad for learned in network.ranges.values()]
        assert sum(grad is not None and bool(grad.isfinite().all()) for grad in learned) == len(learned)
        assert any(bool(grad.any()) for grad in learned if grad is not None)
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        model.requires_grad_(False)


def bases(model: Any, kind: str) -> tuple[SiteTransform, ...]:
    site = next(site for site in all_sites(model) if site.name == "0.ffn.in")
    path = "bert.encoder.layer.0.intermediate.dense.weight"
    random = torch.Generator().manual_seed(0)
    basis = (
        Hadamard(FrozenTensor(torch.ones(site.channels)), 32)
        if kind == "rotation"
        else Diagonal(
            FrozenTensor(torch.rand(site.channels, generator=random) + 0.5),
            FrozenTensor(torch.randn(site.channels, generator=random)),
        )
    )
    return (SiteTransform(site=site.name, basis=basis, weights=(path,)),)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    ("method", "bits", "kind"),
    [
        (Uniform(), {"symmetric": True}, None),
        (Uniform(), {"weights": 4, "weight_granularity": "channel"}, None),
        (Uniform(), {"weights": 4, "weight_group": 8}, None),
        (Peg(k=2, sites=("*.ffn.in",)), {}, None),
        (Dynamic(), {"symmetric": True}, None),
        (Uniform(), {}, "rotation"),
        (Uniform(), {}, "scale and shift"),
    ],
)
def test_what_is_learned_is_what_a_trial_runs(
    method: Any, bits: dict[str, object], kind: str | None, moved: bool
) -> None:
    model = tiny_model()
    plan = planned(model, GEMM, method, **bits)
    if kind is not None:
        plan = QuantPlan(activations=plan.activations, weights=plan.weights, transforms=bases(model, kind))
    network = LearningNetwork(model, plan)
    if moved:
        random = torch.Generator().manual_seed(1)
        for learned in network.ranges.values():
            for each in (learned.growth, learned.shift):
                if each is not None:
                    each.data.uniform_(-0.3, 0.3, generator=random)
    learned_plan = network.plan()
    assert (learned_plan != plan) == moved
    with torch.inference_mode(), insert(model, learned_plan):
        wanted = model(**padded().inputs).logits.clone()
    final = LearningNetwork(model, learned_plan)
    with torch.inference_mode(), final.tapped():
        assert torch.equal(final.forward(**padded().inputs).logits, wanted)
    with torch.inference_mode(), network.tapped():  # with scales before the plan's FP32 rounded them
        torch.testing.assert_close(network.forward(**padded().inputs).logits, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ((PublishedPercentile(), SplitMethod(), Rounding()), "PublishedPercentile finds"),
        ((MinMax(), TopChannels(k=1), Rounding()), "split=none, got TopChannels"),
        ((MinMax(), SplitMethod(), Gptq()), "rounding=nearest, got Gptq"),
    ],
)
def test_a_quantization_that_cannot_be_learned_is_refused(slots: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QAT.check_slots(*slots)
    QAT.check_slots(MinMax(), SplitMethod(), Rounding())
