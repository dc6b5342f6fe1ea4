"""Data-driven groups, and bits by group."""

import pytest
import torch
from tiny import ALL, GEMM, logits, padded, planned, sites_of, tiny_model

from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.grouped import Grouped
from quantlab.methods.peg import Peg
from quantlab.plan.plan import QuantPlan
from quantlab.quant.sqnr import sqnr_db

FFN = ("*.ffn.in", "*.ffn.mid")


def test_equal_groups_are_peg() -> None:
    model = tiny_model()
    plans = [
        planned(model, ALL, method) for method in (Peg(sites=FFN, k=4), Grouped(sites=FFN, k=4, by="equal"))
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("by", ["optimal", "kmeans", "equal"])
def test_one_group_is_uniform(by: str) -> None:
    from quantlab.methods.uniform import Uniform

    model = tiny_model()
    assert planned(model, GEMM, Grouped(sites=FFN, k=1, by=by)) == planned(model, GEMM, Uniform())


def test_rules_give_other_numbers_of_groups() -> None:
    rules = ({"match": "*.ffn.mid", "k": 5}, {"match": "1.ffn.mid", "k": 2})
    plan = planned(tiny_model(), GEMM, Grouped(sites=FFN, k=3, rules=rules))
    ranges = {item.site: len(item.lo) for item in plan.activations}
    assert (ranges["0.ffn.in"], ranges["0.ffn.mid"], ranges["1.ffn.mid"], ranges["0.attn.in"]) == (3, 5, 2, 1)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_bits_by_group_keep_to_the_mean(bits: int) -> None:
    model = tiny_model()
    for layer in model.bert.encoder.layer:
        norm = layer.attention.output.LayerNorm
        norm.weight[:4] *= 30
        norm.bias[:4] *= 30
    plan = planned(model, GEMM, Grouped(sites=FFN, k=4, allocate_bits=True), activations=bits)
    item = {item.site: item for item in plan.activations}["0.ffn.in"]
    sizes = torch.bincount(torch.tensor(item.groups))
    widths = [hi - lo for lo, hi in zip(item.lo, item.hi, strict=True)]
    spent = sum(b * int(n) for b, n in zip(item.group_bits, sizes, strict=True))
    assert spent <= bits * len(item.groups) and len(set(item.group_bits)) > 1
    assert item.group_bits[widths.index(max(widths))] == max(item.group_bits)
    assert QuantPlan.from_json(plan.to_json(), plan.arrays) == plan
    x = torch.randn(50, 32, generator=torch.manual_seed(0))
    snapped = item.function(torch.device("cpu"))(x)
    for group, grid in enumerate(item.grids()):
        channels = torch.tensor(item.groups) == group
        lo, hi = torch.tensor(item.lo[group]), torch.tensor(item.hi[group])
        assert torch.equal(snapped[:, channels], grid.snap(x[:, channels], *grid.parameters(lo, hi)))
    answers = {}
    for engine in ("simulated", "integer"):
        with insert(model, plan, engine):
            answers[engine] = logits(model, padded())
    assert sqnr_db(answers["simulated"], answers["integer"]) > 25


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"k": 0}, "method.k must be a whole number of at least 1, got 0"),
        ({"k": 2, "by": "k-means"}, r"method.by must be one of .*; got 'k-means' \(did you mean 'kmeans'"),
        ({"k": 2, "rules": ({"match": "*"},)}, "a rule of method.rules is"),
        ({"k": 2, "rules": ({"match": "*", "k": 0},)}, r"method.rules\[\*\] must be a whole number"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grouped(sites=FFN, **fields)  # type: ignore[arg-type]


def test_more_groups_than_channels() -> None:
    with pytest.raises(ValueError, match="method.k must be at most the 32 channels of 0.ffn.in, got 33"):
        Grouped(sites=FFN, k=33).check(sites_of(tiny_model(), GEMM))


def test_groups_of_inputs() -> None:
    """Each row's range for every 8 inputs, against a weight of as many rows."""
    model, bits = tiny_model(), Bits(weights=3, activations=32, weight_group=8)
    plan = planned(model, GEMM, Grouped(sites=FFN, k=2), weights=3, activations=32, weight_group=8)
    by_name = {item.parameter: item for item in plan.weights}
    name = "bert.encoder.layer.0.attention.self.query.weight"
    value, item = model.get_parameter(name).data, by_name[name]
    assert item.group == 8 and len(item.lo) == value.numel() // 8
    rows = value.reshape(-1, 8)
    grid = bits.weight_grid(name, model.get_submodule(name.removesuffix(".weight")))
    scale, zero_point = grid.parameters(rows.amin(1, keepdim=True), rows.amax(1, keepdim=True))  # type: ignore[union-attr]
    assert torch.equal(item.snap(value), grid.snap(rows, scale, zero_point).reshape(value.shape))  # type: ignore[union-attr]
    embedding = by_name["bert.embeddings.word_embeddings.weight"]
    assert embedding.group is None


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_embeddings_by_rows(bits: int) -> None:
    model = tiny_model()
    plan = planned(
        model, GEMM, Grouped(sites=FFN, k=2), embeddings=bits, embedding_granularity="row", weights=32
    )
    (item,) = [item for item in plan.weights if item.parameter.endswith("word_embeddings.weight")]
    value = model.get_parameter(item.parameter).data
    assert item.axis == 0 and len(item.lo) == len(value)
    assert all(len(row.unique()) <= 2**bits - 1 for row in item.snap(value))


def test_a_group_that_does_not_divide() -> None:
    from quantlab.methods.bits import weighted_modules

    modules = weighted_modules(tiny_model())
    Bits(weight_group=16).check_groups(modules)
    with pytest.raises(
        ValueError, match=r"must divide the inputs of every Linear: .* has 32, got 24; .*\[16, 32\]"
    ):
        Bits(weight_group=24).check_groups(modules)
    Bits(weight_group=24, weights=32, embeddings=8).check_groups(modules)
    with pytest.raises(ValueError, match="bits.weight_group must be a whole number of at least 1, got 0"):
        Bits(weight_group=0)
