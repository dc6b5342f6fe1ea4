"""Per-embedding-group quantization: its groups, its ends, and what it refuses."""

from typing import Any

import pytest
import torch
from tiny import GEMM, LENGTHS, logits, padded, plan_of, sites_of, tiny_model

from quantlab.calibration.estimators import MinMax, Percentile
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.sqnr import sqnr_db

HIDDEN, HEADS = 32, 4
XHY = ("*.ffn.in", "*.ffn.out", "*.ffn.sum")
BITS = Bits(weights=32, activations=4)


def planned(method: Uniform | Peg, bits: Bits = BITS, calibration: Any = None) -> dict[str, ActivationQuant]:
    model = tiny_model()
    sites = sites_of(model)
    plan = plan_of(method, sites, observe(model, sites, [padded()]), (), bits, calibration or MinMax())
    return {item.site: item for item in plan.activations}


def test_only_its_sites_get_groups() -> None:
    uniform, peg = planned(Uniform()), planned(Peg(sites=XHY, k=5))
    grouped = {f"{layer}.ffn.{role}" for layer in (0, 1) for role in ("in", "out", "sum")}
    assert uniform.keys() == peg.keys()
    for name, item in peg.items():
        if name in grouped:
            assert (len(item.lo), len(item.hi), len(item.groups)) == (5, 5, HIDDEN)
            assert sorted(item.groups.count(group) for group in range(5)) == [6, 6, 6, 7, 7]
            assert (min(item.lo), max(item.hi)) == (uniform[name].lo[0], uniform[name].hi[0])
        else:
            assert item == uniform[name]


@pytest.mark.parametrize("permute", ["none", "range"])
def test_one_group_is_uniform(permute: str) -> None:
    assert planned(Peg(sites=XHY, k=1, permute=permute)) == planned(Uniform())


@pytest.mark.parametrize("permute", ["none", "range"])
def test_a_group_a_channel(permute: str) -> None:
    model = tiny_model()
    seen = observe(model, sites_of(model), [padded()])
    for name, item in planned(Peg(sites=XHY, k=HIDDEN, permute=permute)).items():
        if item.groups:
            groups = torch.tensor(item.groups)
            assert torch.equal(torch.tensor(item.lo)[groups], seen[name].min)
            assert torch.equal(torch.tensor(item.hi)[groups], seen[name].max)


def test_permutation_sorts_by_width() -> None:
    model = tiny_model()
    seen = observe(model, sites_of(model), [padded()])["1.ffn.sum"]
    widths, groups = seen.max - seen.min, planned(Peg(sites=XHY, k=4))["1.ffn.sum"].groups
    assert [sorted(groups)[channel] for channel in range(HIDDEN)] == [
        groups[c] for c in widths.argsort().tolist()
    ]
    unpermuted = planned(Peg(sites=XHY, k=4, permute="none"))["1.ffn.sum"].groups
    assert unpermuted == tuple(group for group in range(4) for _ in range(8))


def test_more_groups_lose_less() -> None:
    model, batch = tiny_model(), padded()
    reference, decibels = logits(model, batch), []
    for k in (1, 4, HIDDEN):
        plan = QuantPlan(
            activations=tuple(planned(Peg(sites=XHY, k=k), Bits(weights=32, activations=6)).values())
        )
        only = QuantPlan(
            activations=tuple(item for item in plan.activations if item.site.startswith("1.ffn"))
        )
        with insert(model, only):
            decibels.append(sqnr_db(reference, logits(model, batch)))
    assert decibels == sorted(decibels)


def test_groups_of_heads_run() -> None:
    model = tiny_model()
    items = planned(Peg(sites=("*.attn.scores", "*.attn.probs"), k=HEADS))
    assert len(items["0.attn.scores"].lo) == HEADS
    with insert(model, QuantPlan(activations=tuple(items.values()))):
        assert logits(model, padded()).shape == (len(LENGTHS), 2)


def test_groups_are_cut_to_a_clipped_range() -> None:
    clip, name = Percentile(percentile=90), "0.ffn.sum"
    clipped, whole = (planned(Peg(sites=XHY, k=HIDDEN), calibration=c)[name] for c in (clip, MinMax()))
    tensor = planned(Uniform(), calibration=clip)[name]
    assert clipped.lo == tuple(max(tensor.lo[0], end) for end in whole.lo)
    assert clipped.hi == tuple(min(tensor.hi[0], end) for end in whole.hi)


def test_sites_without_integers_stay_as_they_are() -> None:
    method, site = Peg(sites=XHY, k=4), sites_of(tiny_model())[-5]
    assert site.name == "1.ffn.out"
    assert method.site_spec(site, Bits(activations=32)) is None
    assert planned(method, Bits(activations="fp16"))["1.ffn.out"].groups == ()


def test_most_groups() -> None:
    model = tiny_model()
    Peg(sites=XHY, k=HIDDEN).check(sites_of(model))
    with pytest.raises(ValueError, match=r"method.k must be at most the 32 channels of 0.ffn.in, got 33"):
        Peg(sites=XHY, k=33).check(sites_of(model))
    with pytest.raises(ValueError, match=r"method.k must be at most the 4 channels of 0.attn.probs, got 5"):
        Peg(sites=("*.attn.probs",), k=5).check(sites_of(model))


def test_unmatched_sites() -> None:
    with pytest.raises(ValueError, match=r"method.sites: '\*.ffn.sum' matches nothing"):
        Peg(sites=XHY[2:], k=2).check(sites_of(tiny_model(), GEMM))  # residual sums enter no product
    with pytest.raises(
        ValueError, match=r"method.sites: '\*.fnn.sum' matches nothing \(did you mean '\*.ffn.sum'"
    ):
        Peg(sites=("*.fnn.sum",), k=2).check(sites_of(tiny_model()))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"k": "4"}, "k must be a whole number of at least 1, got '4'"),
        ({"k": 2, "permute": "ranges"}, "permute must be one of none, range; got 'ranges'"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Peg(sites=XHY, **fields)
