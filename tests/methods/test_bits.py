"""Which precision each tensor gets, and along which axis a weight's ranges lie."""

from typing import Any

import pytest
import torch
from tiny import sites_of, tied_decoder, tiny_model
from torch import nn

from quantlab.calibration.estimators import MinMax, Mse, Percentile, PublishedPercentile, RunningMinMax
from quantlab.methods.bits import Bits, Rule, tied_weights, weighted_modules
from quantlab.methods.method import check_weight_ranges, plan_weights
from quantlab.methods.uniform import Fp32, Uniform
from quantlab.plan.quantizers import WeightQuant
from quantlab.quant.grid import AffineGrid, FloatGrid
from quantlab.quant.ranges import weight_range

LINEAR, EMBEDDING, NORM = nn.Linear(4, 3), nn.Embedding(7, 4), nn.LayerNorm(4)
INT8, UINT8 = AffineGrid(bits=8, symmetric=True), AffineGrid(bits=8, symmetric=False)


def planned(bits: Bits) -> dict[str, WeightQuant]:
    """The weights of a tiny BERT by name."""
    return {item.parameter: item for item in plan_weights(tiny_model(), Uniform(), bits, MinMax())}


def test_defaults() -> None:
    bits = Bits()
    assert bits.activation_grid("0.ffn.sum") == UINT8
    assert bits.weight_grid("a.weight", LINEAR) == INT8
    assert bits.weight_grid("a.weight", EMBEDDING) == INT8
    assert bits.weight_grid("a.weight", NORM) is None
    assert bits.weight_axis(LINEAR) is None


@pytest.mark.parametrize(
    "fields, linear, embedding, norm, activation",
    [
        ({"weights": 4}, 4, 4, None, 8),
        ({"weights": 4, "embeddings": 2}, 4, 2, None, 8),
        ({"weights": 32, "embeddings": 2}, None, 2, None, 8),
        ({"embeddings": 32}, 8, None, None, 8),
        ({"norms": 8}, 8, 8, 8, 8),
        ({"activations": 32}, 8, 8, None, None),
        ({"weights": "int4", "activations": "int16"}, 4, 4, None, 16),
        ({"weights": "fp32", "activations": "fp32"}, None, None, None, None),
    ],
)
def test_precisions(
    fields: dict[str, Any],
    linear: int | None,
    embedding: int | None,
    norm: int | None,
    activation: int | None,
) -> None:
    bits = Bits(**fields)
    grids = [bits.weight_grid("w", module) for module in (LINEAR, EMBEDDING, NORM)] + [
        bits.activation_grid("x")
    ]
    assert [grid and grid.bits for grid in grids] == [linear, embedding, norm, activation]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weight_symmetric", [True, False])
def test_symmetry(symmetric: bool, weight_symmetric: bool) -> None:
    bits = Bits(symmetric=symmetric, weight_symmetric=weight_symmetric)
    assert bits.activation_grid("x") == AffineGrid(bits=8, symmetric=symmetric)
    assert bits.weight_grid("w", LINEAR) == AffineGrid(bits=8, symmetric=weight_symmetric)


def test_float_formats() -> None:
    bits = Bits(weights="bf16", activations="fp16", norms="bf16")
    assert bits.activation_grid("x") == FloatGrid(format="fp16")
    assert bits.weight_grid("w", LINEAR) == bits.weight_grid("w", NORM) == FloatGrid(format="bf16")


def test_rules_override_by_name_and_the_last_wins() -> None:
    rules = (
        {"match": "*.ffn.*", "bits": 16},
        Rule(match="*.ffn.sum", bits="fp16"),
        {"match": "*.layer.0.*weight", "bits": 4},
        {"match": "*LayerNorm.weight", "bits": 8},
    )
    bits = Bits(rules=rules)
    assert bits.activation_grid("0.ffn.in") == AffineGrid(bits=16, symmetric=False)
    assert bits.activation_grid("0.ffn.sum") == FloatGrid(format="fp16")
    assert bits.activation_grid("0.attn.out") == UINT8
    assert bits.weight_grid("bert.encoder.layer.0.output.dense.weight", LINEAR) == AffineGrid(
        bits=4, symmetric=True
    )
    assert bits.weight_grid("bert.encoder.layer.0.output.LayerNorm.weight", NORM) == INT8
    assert bits.weight_grid("bert.encoder.layer.1.output.dense.weight", LINEAR) == INT8
    assert Bits(rules=rules[:1], activations=32).activation_grid("1.ffn.in") == AffineGrid(
        bits=16, symmetric=False
    )
    assert Bits(rules=({"match": "*.sum", "bits": 32},)).activation_grid("1.ffn.sum") is None


def test_rules_that_match_nothing() -> None:
    model = tiny_model()
    names = [*(site.name for site in sites_of(model)), *weighted_modules(model)]
    Bits(rules=({"match": "*.ffn.sum", "bits": 16}, {"match": "*word_emb*", "bits": 4})).check_rules(names)
    with pytest.raises(
        ValueError, match=r"bits.rules: '\*.ffn.sun' matches nothing \(did you mean '\*.ffn.sum'"
    ):
        Bits(rules=({"match": "*.ffn.sun", "bits": 16},)).check_rules(names)


def test_what_is_quantized_in_a_model() -> None:
    model = tiny_model()
    matrices = {name for name, value in model.named_parameters() if value.ndim == 2}
    norms = {name for name, _ in model.named_parameters() if name.endswith("LayerNorm.weight")}
    assert planned(Bits()).keys() == matrices
    assert planned(Bits(norms=8)).keys() == matrices | norms
    assert planned(Bits(weights=32)).keys() == set()
    assert planned(Bits(weights=32, embeddings=4)).keys() == {
        name for name in matrices if "embeddings" in name
    }
    assert set(weighted_modules(model)) == matrices | norms
    assert plan_weights(model, Fp32(), Bits(), MinMax()) == ()


def test_axes_per_channel() -> None:
    weights = planned(Bits(weight_granularity="channel", norms=8))
    model = tiny_model()
    for name, item in weights.items():
        value, embedding, norm = model.get_parameter(name), "embeddings." in name, "LayerNorm" in name
        # output channels: rows of a Linear, columns of an embedding; a LayerNorm's weight has one range
        assert item.axis == (None if norm else 1 if embedding else 0), name
        assert len(item.lo) == len(item.hi) == (1 if norm else value.shape[1 if embedding else 0]), name


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("estimator", ["minmax", "mse"])
def test_ranges_are_the_estimators(granularity: str, estimator: str) -> None:
    bits = Bits(weights=4, weight_granularity=granularity, weight_estimator=estimator)
    value, item = tiny_model().get_parameter("classifier.weight"), planned(bits)["classifier.weight"]
    lo, hi = weight_range(value, AffineGrid(bits=4, symmetric=True), estimator, item.axis)
    assert (item.lo, item.hi) == (tuple(lo.tolist()), tuple(hi.tolist()))


def test_only_the_published_percentile_ranges_weights() -> None:
    model = tiny_model()
    (published,) = (
        item
        for item in plan_weights(model, Uniform(), Bits(), PublishedPercentile())
        if item.parameter == "classifier.weight"
    )
    largest = model.get_parameter("classifier.weight").max().item()
    assert (published.grid, published.axis, published.lo, published.hi) == (UINT8, None, (0.0,), (largest,))
    assert plan_weights(model, Uniform(), Bits(), Mse()) == plan_weights(model, Uniform(), Bits(), MinMax())


@pytest.mark.parametrize("field, value", [("weight_granularity", "channel"), ("weight_estimator", "mse")])
def test_how_weights_find_their_ranges_is_obeyed_or_refused(field: str, value: str) -> None:
    """By every estimator: the settings change the plan, or the check refuses them."""
    model, bits = tiny_model(), Bits(weights=4, **{field: value})
    for calibration in (MinMax(), RunningMinMax(), Percentile(), Mse()):
        check_weight_ranges(bits, calibration)
        assert plan_weights(model, Uniform(), bits, calibration) != plan_weights(
            model, Uniform(), Bits(weights=4), calibration
        )
    check_weight_ranges(Bits(), PublishedPercentile())
    with pytest.raises(
        ValueError, match=f"bits.{field} must be .* with PublishedPercentile.*; got '{value}'"
    ):
        check_weight_ranges(bits, PublishedPercentile())


@pytest.mark.parametrize("kind, name", [(nn.LayerNorm, "norms"), (nn.Embedding, "embeddings")])
def test_bits_of_what_the_model_lacks_are_refused(kind: type[nn.Module], name: str) -> None:
    modules = list(weighted_modules(tiny_model()).values())
    others = [module for module in modules if not isinstance(module, kind)]
    for bits in (Bits(), Bits(**{name: 32}), Bits(**{name: "fp32"})):
        bits.check_kinds(others)
    Bits(**{name: 8}).check_kinds(modules)
    with pytest.raises(ValueError, match=f"bits.{name} is 8, but the model has no {kind.__name__}"):
        Bits(**{name: 8}).check_kinds(others)


def test_planning_changes_no_weight() -> None:
    model, before = tiny_model(), tiny_model().state_dict()
    plan_weights(
        model, Uniform(), Bits(weights=2, weight_estimator="mse", weight_granularity="channel"), MinMax()
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_lists_of_yaml_become_hashable() -> None:
    assert hash(Bits(rules=[{"match": "*", "bits": 8}])) == hash(Bits(rules=(Rule("*", 8),)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"weights": 1}, r"bits.weights: bits must be a whole number in 2\.\.16, got 1"),
        ({"activations": 17}, r"bits.activations: bits must be a whole number in 2\.\.16, got 17"),
        ({"activations": 8.5}, r"bits.activations: bits must be a whole number in 2\.\.16, got 8.5"),
        ({"activations": None}, r"bits.activations: bits must be a whole number in 2\.\.16, got None"),
        ({"embeddings": 0}, r"bits.embeddings: bits must be a whole number in 2\.\.16, got 0"),
        ({"norms": "fp8"}, r"bits.norms: precision must be .*; got 'fp8' \(did you mean"),
        ({"symmetric": "yes"}, "bits.symmetric must be one of True, False; got 'yes'"),
        ({"weight_symmetric": None}, "bits.weight_symmetric must be one of True, False; got None"),
        ({"weight_granularity": "channels"}, r"bits.weight_granularity must be .*did you mean 'channel'"),
        ({"weight_estimator": "min-max"}, r"bits.weight_estimator must be .*did you mean 'minmax'"),
        (
            {"rules": [{"match": "*", "bits": 1}]},
            r"bits.rules\[\*\]: bits must be a whole number in 2\.\.16, got 1",
        ),
        (
            {"rules": [{"match": "*"}]},
            r"a rule is \{match: <glob>, bits: <precision>\}, got \{'match': '\*'\}",
        ),
        ({"rules": [{"match": "*", "bits": 8, "k": 1}]}, "a rule is .*, got"),
        ({"rules": ["*.ffn.sum"]}, "a rule is .*, got '"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bits(**fields)


def test_a_tied_weight_is_planned_once_with_one_range_a_row() -> None:
    model = tied_decoder()
    assert tied_weights(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    bits = Bits(weights=4, embeddings=6, weight_granularity="channel", norms=8)
    plans = {item.parameter: item for item in plan_weights(model, Uniform(), bits, MinMax())}
    assert "lm_head.weight" not in plans
    shared = plans["model.embed_tokens.weight"]
    assert (shared.grid.bits, shared.axis, len(shared.lo)) == (6, 0, 12)
    assert plans["model.norm.weight"].axis is None


@pytest.mark.parametrize("match", ["lm_head.weight", "model.embed_tokens.weight", "lm_*"])
def test_a_rule_for_either_name_of_a_tied_weight_leaves_it_in_fp32(match: str) -> None:
    bits = Bits(rules=({"match": match, "bits": 32},))
    plans = {item.parameter for item in plan_weights(tied_decoder(), Uniform(), bits, MinMax())}
    assert not plans & {"lm_head.weight", "model.embed_tokens.weight"}
    assert "model.layers.0.mlp.gate_proj.weight" in plans


def test_a_patch_embedding_has_a_range_for_each_output_channel() -> None:
    convolution = nn.Conv2d(3, 5, 2)
    bits = Bits(weight_granularity="channel")
    assert bits.weight_grid("patches.weight", convolution) == INT8
    assert bits.weight_axis(convolution) == 0
