"""What a rounding is: a choice of the integers that stand for weights."""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.calibration.probe import Probe
from quantlab.plan.plan import QuantPlan


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Each weight to the nearest value of its grid. Subclasses choose others: one file and one YAML each."""

    def round(self, probe: Probe, plan: QuantPlan) -> QuantPlan:
        """The plan, which has no activations yet, with the integers of its weights chosen."""
        return plan
