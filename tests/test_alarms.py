"""Each alarm where its cause is planted, and silence where it is not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from properties import heavy_tailed, sketched
from tiny import tiny_model

from quantlab.alarms import ALARMS, Alarm, Finding, raised
from quantlab.placement.plan import ActivationQuant, QuantPlan, WeightQuant
from quantlab.placement.sites import Tap
from quantlab.quant.grid import AffineGrid, FloatGrid, Grid

ASYMMETRIC, SYMMETRIC = AffineGrid(bits=8, symmetric=False), AffineGrid(bits=8, symmetric=True)
LABELS = np.arange(200) % 2


def answers(classes: np.ndarray) -> np.ndarray:
    """Logits whose largest is at these classes."""
    return np.eye(2, dtype=np.float32)[classes]


def activation(grid: Grid = ASYMMETRIC, lo: tuple[float, ...] = (-9.0,), hi: tuple[float, ...] = (9.0,)) -> QuantPlan:
    item = ActivationQuant(site="0.ffn.sum", tap=Tap("classifier", "input"), grid=grid, lo=lo, hi=hi)
    return QuantPlan(activations=(item,))


def weight(lo: float, hi: float, grid: Grid = ASYMMETRIC) -> QuantPlan:
    return QuantPlan(weights=(WeightQuant(parameter="classifier.weight", grid=grid, axis=None, lo=(lo,), hi=(hi,)),))


def finding(**changes: Any) -> Finding:
    """A trial in order: both models are right nine times in ten, every range holds what was seen."""
    right = np.where(np.arange(200) % 10 == 0, 1 - LABELS, LABELS)
    return Finding(**{
        "plan": activation(),
        "sketches": {"0.ffn.sum": sketched(heavy_tailed(500, 4))},
        "model": tiny_model(),
        "tags": {"label_order": "matched"},
        "logits": answers(right),
        "reference": answers(right),
        "labels": LABELS,
        "regression": False,
    } | changes)  # fmt: skip


def names(**changes: Any) -> list[str]:
    return [alarm.name for alarm in raised(finding(**changes))]


def test_a_trial_in_order_raises_nothing() -> None:
    assert raised(finding()) == ()


def test_every_alarm_is_tested_here() -> None:
    assert {check.__name__ for check in ALARMS} == {
        "constant_prediction", "majority_accuracy", "one_sided_range", "fp16_overflow", "label_order_assumed",
        "runtime_fell_back",
    }  # fmt: skip


@pytest.mark.parametrize("ones, raises", [(200, True), (196, True), (195, False), (4, True), (5, False), (0, True)])
def test_constant_prediction(ones: int, raises: bool) -> None:
    classes = (np.arange(200) < ones).astype(int)
    alarms = raised(finding(logits=answers(classes)))
    expected = f"{max(ones, 200 - ones) / 200:.1%} of the answers are the same class"
    assert (Alarm("constant_prediction", expected) in alarms) == raises
    assert ("constant_prediction" in names(logits=answers(classes))) == raises


def test_constant_prediction_is_about_the_quantized_answers() -> None:
    assert "constant_prediction" not in names(reference=answers(np.zeros(200, dtype=int)))


@pytest.mark.parametrize("right, raises", [(100, True), (107, True), (108, False), (30, True), (200, False)])
def test_majority_accuracy(right: int, raises: bool) -> None:
    """Half of the labels are of one class, and a standard error is 0.5 / sqrt(200) = 0.035: 107 right of 200."""
    logits = answers(np.where(np.arange(200) < right, LABELS, 1 - LABELS))
    assert ("majority_accuracy" in names(logits=logits)) == raises
    assert ("majority_accuracy_fp32" in names(reference=logits)) == raises
    assert "majority_accuracy_fp32" not in names(logits=logits)


def test_majority_accuracy_knows_skewed_labels() -> None:
    labels = (np.arange(200) < 20).astype(int)
    always_zero = answers(np.zeros(200, dtype=int))
    assert "majority_accuracy" in names(labels=labels, logits=always_zero, reference=answers(labels))
    assert names(labels=labels, logits=answers(labels), reference=answers(labels)) == []


@pytest.mark.parametrize(
    "plan, raises",
    [
        (activation(lo=(0.0,)), True),
        (activation(hi=(0.0,)), True),
        (activation(lo=(-0.001,)), False),
        (activation(lo=(0.0, -1.0), hi=(1.0, 0.0)), False),  # a group for each side
        (activation(lo=(0.0, 0.5)), True),
        (activation(SYMMETRIC, lo=(0.0,)), False),  # a symmetric grid reaches as far below
        (activation(FloatGrid(format="bf16"), lo=(), hi=()), False),
        (weight(0.0, 1.0), True),
        (weight(-1.0, 0.0), True),
        (weight(-1.0, 1.0), False),
        (weight(0.0, 1.0, SYMMETRIC), False),
    ],
)
def test_one_sided_range(plan: QuantPlan, raises: bool) -> None:
    assert names(plan=plan) == (["one_sided_range"] if raises else [])


def test_one_sided_range_where_nothing_lies_beyond() -> None:
    positive = {"0.ffn.sum": sketched(heavy_tailed(500, 4).abs() + 1e-6)}
    rare = heavy_tailed(1000, 1).abs() + 1e-6
    rare[:9] *= -1
    assert names(plan=activation(lo=(0.0,)), sketches=positive) == []
    assert names(plan=activation(lo=(0.0,)), sketches={"0.ffn.sum": sketched(rare)}) == []  # less than 1 %
    rare[:20] = -1
    assert names(plan=activation(lo=(0.0,)), sketches={"0.ffn.sum": sketched(rare)}) == ["one_sided_range"]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_lie_on_no_side(zero: float) -> None:
    zeros = torch.full((100, 2), zero)
    model = tiny_model()
    model.classifier.weight.fill_(zero)
    for lo, hi in ((0.0, 0.0), (0.0, 1.0), (-1.0, 0.0)):
        assert names(plan=activation(lo=(lo,), hi=(hi,)), sketches={"0.ffn.sum": sketched(zeros)}) == []
        assert names(plan=weight(lo, hi), model=model) == []


def test_one_sided_range_counts_and_names_some() -> None:
    item = activation(lo=(0.0,)).activations[0]
    items = tuple(replace(item, site=f"{layer}.ffn.sum") for layer in range(5))
    sketches = {item.site: sketched(heavy_tailed(500, 4)) for item in items}
    (alarm,) = raised(finding(plan=QuantPlan(activations=items, weights=weight(-1, 1).weights), sketches=sketches))
    assert alarm.message == ("5 of 6 ranges leave out one side of zero: 0.ffn.sum, 1.ffn.sum, 2.ffn.sum, ...")


@pytest.mark.parametrize(
    "format, largest, raises",
    [
        ("fp16", 65504.0, False),
        ("fp16", 65600.0, True),
        ("fp16", -70000.0, True),
        ("bf16", 70000.0, False),
    ],
)
def test_fp16_overflow(format: str, largest: float, raises: bool) -> None:
    x = heavy_tailed(500, 4)
    x[3, 1] = largest
    plan = activation(FloatGrid(format=format), lo=(), hi=())
    alarms = raised(finding(plan=plan, sketches={"0.ffn.sum": sketched(x)}))
    message = f"0.ffn.sum reaches {abs(largest):.0f}, FP16 ends at 65504"
    assert alarms == ((Alarm("fp16_overflow", message),) if raises else ())


def test_no_fp16_overflow_of_an_integer_grid() -> None:
    assert names(sketches={"0.ffn.sum": sketched(1e6 * heavy_tailed(500, 4))}) == []


@pytest.mark.parametrize("order, raises", [("assumed", True), ("matched", False), ("regression", False)])
def test_label_order_assumed(order: str, raises: bool) -> None:
    assert names(tags={"label_order": order}) == (["label_order_assumed"] if raises else [])


@pytest.mark.parametrize("fell_back", [True, False])
def test_runtime_fell_back(fell_back: bool) -> None:
    tags = {"runtime": "some 1.0", "runtime_fell_back": str(fell_back), "deployed_products": "0 integer; 9 float"}
    assert names(tags=tags) == (["runtime_fell_back"] if fell_back else [])


def test_a_regression_has_no_classes() -> None:
    scores = np.zeros((200, 1), dtype=np.float32)
    assert names(regression=True, logits=scores, reference=scores, labels=np.linspace(0, 5, 200)) == []
