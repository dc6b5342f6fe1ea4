"""An alarm, and the evidence that alarms are raised from."""

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
from quantlab.tasks.scores import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN_NAMES = 3


@dataclass(frozen=True)
class Alarm:
    """A name to filter by, and a sentence to read."""

    name: str
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the checks of a trial read."""

    config: Mapping[str, Any]  # the trial's, as plain data
    plan: QuantPlan
    sites: Sequence[Site]  # all of the model's
    sketches: Mapping[str, Sketch]  # by site, in the network that calibrated them
    model: PreTrainedModel  # in FP32
    tags: Mapping[str, str]
    metrics: Mapping[str, Any]
    logits: np.ndarray  # (N, C): the answers
    reference: np.ndarray  # the FP32 network's, (N, C)
    labels: np.ndarray  # (N,)
    kind: Kind  # of the task: what the columns hold

    @cached_property
    def coverages(self) -> tuple[Coverage, ...]:
        """How each tensor on an integer grid covers the grid's levels."""
        return tuple(coverage for coverage in self._coverages() if coverage is not None)

    def _coverages(self) -> Iterator[Coverage | None]:
        for site in self.plan.activations:
            yield site_coverage(site, self.sketches[site.site])
        for weight in self.plan.weights:
            value = self.model.get_parameter(weight.parameter).detach()
            yield weight_coverage(weight, self.plan.in_basis(weight.parameter, value))


def first_few(names: Sequence[str]) -> str:
    """Joins the first few names, and "..." if there are more."""
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
