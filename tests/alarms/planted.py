"""A trial in order, in which causes of alarms are planted."""

from typing import Any

import numpy as np
from properties import heavy_tailed, sketched
from tiny import tiny_model

from quantlab.alarms import Evidence, raised_alarms
from quantlab.network.taps import ModuleInput
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.grid import AffineGrid, Grid
from quantlab.tasks.scores import Kind

ASYMMETRIC, SYMMETRIC = AffineGrid(bits=8, symmetric=False), AffineGrid(bits=8, symmetric=True)
LABELS = np.arange(200) % 2
SITE, WEIGHT = "0.ffn.sum", "classifier.weight"


def answers(classes: np.ndarray) -> np.ndarray:
    """Logits whose largest is at these classes."""
    return np.eye(2, dtype=np.float32)[classes]


def activation(
    grid: Grid = ASYMMETRIC,
    lo: tuple[float, ...] = (-9.0,),
    hi: tuple[float, ...] = (9.0,),
    groups: tuple[int, ...] = (),
) -> QuantPlan:
    item = ActivationQuant(site=SITE, tap=ModuleInput("classifier"), grid=grid, lo=lo, hi=hi, groups=groups)
    return QuantPlan(activations=(item,))


def weight(lo: float, hi: float, grid: Grid = ASYMMETRIC) -> QuantPlan:
    return QuantPlan(weights=(WeightQuant(parameter=WEIGHT, grid=grid, axis=None, lo=(lo,), hi=(hi,)),))


def calibrated(**changes: Any) -> dict[str, Any]:
    """A trial's config, as far as alarms look."""
    calibration = {"samples": 64, "padding": "masked"} | changes
    return {"calibration": calibration, "task": {"name": "qnli", "metrics": ["accuracy"]}}


def evidence(**changes: Any) -> Evidence:
    """A trial in order: both models are right nine times in ten, every range holds what was seen."""
    right = np.where(np.arange(200) % 10 == 0, 1 - LABELS, LABELS)
    return Evidence(
        **{
            "config": calibrated(),
            "plan": activation(),
            "sites": (),
            "sketches": {SITE: sketched(heavy_tailed(500, 4))},
            "model": tiny_model(),
            "tags": {"label_order": "matched"},
            "metrics": {},
            "logits": answers(right),
            "reference": answers(right),
            "labels": LABELS,
            "kind": Kind.CLASSES,
        }
        | changes
    )


def names(**changes: Any) -> list[str]:
    return [alarm.name for alarm in raised_alarms(evidence(**changes))]


def message(name: str, **changes: Any) -> str:
    """What the one alarm of this name says; "" where it is not raised."""
    return "".join(alarm.message for alarm in raised_alarms(evidence(**changes)) if alarm.name == name)
