"""What a transform is: a choice of bases for sites and for the weights that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.calibration.probe import Probe
from quantlab.network.sites import Site
from quantlab.plan.plan import SiteTransform


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Every tensor in its own basis. Subclasses choose others: one file and one YAML each."""

    def check(self, sites: Sequence[Site]) -> None:
        """Raises ValueError if the transform cannot do its work at these sites. Reads no weights."""

    def bases(self, probe: Probe) -> tuple[SiteTransform, ...]:
        """The bases of the probe's sites. Raises ValueError where a site that was asked for can have none."""
        return ()
