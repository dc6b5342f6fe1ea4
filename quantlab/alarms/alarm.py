"""What an alarm is, and what alarms look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlab.network.sites import Site
from quantlab.plan.coverage import Coverage, site_coverage, weight_coverage
from quantlab.plan.plan import QuantPlan
from quantlab.quant.sketch import Sketch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMED = 3  # of the worst


@dataclass(frozen=True)
class Alarm:
    """A name for filters, and a sentence for people."""

    name: str
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What alarms look at."""

    config: Mapping[str, Any]  # the trial's, as plain data
    plan: QuantPlan
    sites: Sequence[Site]  # all of the model's
    sketches: Mapping[str, Sketch]  # by site, as the ranges saw them
    model: PreTrainedModel  # in FP32
    tags: Mapping[str, str]
    metrics: Mapping[str, Any]
    logits: np.ndarray  # (N, classes)
    reference: np.ndarray  # the FP32 logits, (N, classes)
    labels: np.ndarray  # (N,)
    regression: bool

    @cached_property
    def coverages(self) -> tuple[Coverage, ...]:
        """How each tensor that is on an integer grid lies on it."""
        return tuple(covered for covered in self._covered() if covered is not None)

    def _covered(self) -> Iterator[Coverage | None]:
        for site in self.plan.activations:
            yield site_coverage(site, self.sketches[site.site])
        for weight in self.plan.weights:
            yield weight_coverage(weight, self.model.get_parameter(weight.parameter).detach())


def worst(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
