"""Clipping the few largest weights before a training, and holding them through it."""

from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import PreTrainedModel

from quantlab.methods.bits import Bits
from quantlab.methods.clip_weight_outliers import ClipWeightOutliers
from quantlab.network.architecture import all_sites
from quantlab.network.models import Recipe
from quantlab.plan.plan import QuantPlan
from quantlab.training.weight_clipping import WeightClipping

PLANTED = {
    "bert.encoder.layer.0.output.dense.weight": 40.0,
    "bert.encoder.layer.1.attention.self.query.weight": -30.0,
}


def planted() -> PreTrainedModel:
    model = tiny_model()
    for name, sigmas in PLANTED.items():
        weight = model.get_parameter(name).data
        weight[3, 5] = sigmas * weight.std()
    return model.requires_grad_()


def clipping(**settings: Any) -> WeightClipping:
    return WeightClipping(**{"recipe": Recipe(), "sigmas": 6, "count": None, "held": True, **settings})


@pytest.mark.parametrize("count", [None, 0, 1, 2])
def test_it_clips_what_the_method_clips(count: int | None) -> None:
    model, expected = planted(), planted()
    for edit in ClipWeightOutliers(sigmas=6, count=count).edits(expected, Bits()):
        expected.get_parameter(edit.parameter).data = edit(expected.get_parameter(edit.parameter).data)
    clipping(count=count).start(model)
    clipped = [
        name for name, value in planted().named_parameters() if not value.equal(model.get_parameter(name))
    ]
    assert len(clipped) == min(2 if count is None else count, 2)
    assert all(value.equal(expected.get_parameter(name)) for name, value in model.named_parameters())


@pytest.mark.parametrize("held", [True, False])
def test_clips_are_held_through_the_training(held: bool) -> None:
    model, training = planted(), clipping(held=held)
    training.start(model)
    limits = {name: float(model.get_parameter(name).detach().abs().max()) for name in PLANTED}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with training.course(model, all_sites(model), QuantPlan()) as course:
        assert course.penalty is None and (course.after_step is not None) == held
        for _ in range(3):
            optimizer.zero_grad()
            (model.get_parameter(next(iter(PLANTED))) - 9).square().mean().backward()
            optimizer.step()
            if course.after_step is not None:
                course.after_step()
    name = next(iter(PLANTED))
    largest = float(model.get_parameter(name).detach().abs().max())
    assert (largest <= limits[name]) == held


@pytest.mark.parametrize("sigmas, count, warns", [(50, None, True), (50, 0, False), (35, None, False)])
def test_nothing_to_clip_is_said(
    sigmas: float, count: int | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clipping(sigmas=sigmas, count=count).start(planted())
    assert ("no weight lies beyond training.sigmas=50" in caplog.text) == warns


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"sigmas": 0}, "training.sigmas must be above 0, got 0"),
        ({"sigmas": -1, "count": 3}, "training.sigmas must be at least 0, got -1"),
        ({"sigmas": "6"}, "training.sigmas must be a finite number, got '6'"),
        ({"count": -1}, "training.count must be a whole number of at least 0, got -1"),
        ({"count": 1.5}, "training.count must be a whole number of at least 0, got 1.5"),
        ({"held": "no"}, "training.held must be one of True, False; got 'no'"),
    ],
)
def test_bad_settings(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        clipping(**bad)
    assert str(caught.value) == message
