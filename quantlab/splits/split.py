"""What a split is: a choice of what a site keeps wide beside its narrow grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from quantlab.calibration.probe import Probe
from quantlab.network.sites import Site, matching_sites
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.grid import Grid
from quantlab.quant.sketch import Sketch
from quantlab.quant.split import Split


@dataclass(frozen=True, kw_only=True)
class SplitMethod:
    """Nothing is kept wide. Subclasses choose what is: one file and one YAML each."""

    fits_grids: ClassVar[bool] = False  # whether a site's split depends on the bits of its grid

    def check(self, sites: Sequence[Site], grids: Mapping[str, Grid | None]) -> None:
        """Raises ValueError if the split cannot do its work at these sites, whose grids are given by name;
        None: FP32. Reads no weights."""

    def splits(self, probe: Probe, sketches: Mapping[str, Sketch]) -> dict[str, Split]:
        """The split of each site that has one, by the site's name.

        ``sketches`` are the sites' in their bases. Raises ValueError where a site that was asked for can have
        none.
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class OperandSplit(SplitMethod):
    """Splits at the operands of Linears that are on integer grids.

    ``sites`` are globs; None: all of these operands. Scores, probabilities and whatever else no Linear reads
    have no columns of a weight to keep wide.
    """

    sites: tuple[str, ...] | None = None

    def check(self, sites: Sequence[Site], grids: Mapping[str, Grid | None]) -> None:
        if self.sites is None:
            return
        names = matching_sites(self.sites, sites, "split.sites")
        for site in sites:
            if site.name in names and not is_narrow(grids[site.name]):
                raise ValueError(
                    f"split.sites has {site.name}, which is {grids[site.name] or 'in FP32'}: only an integer "
                    f"grid is narrow; leave it out or give it 2 to 16 bits"
                )

    def operands(self, probe: Probe, sketches: Mapping[str, Sketch]) -> dict[str, ActivationQuant]:
        """The quantizers of the sites that are split, by the site's name."""
        found = {}
        for site in probe.sites:
            asked = self.sites is None or site.matches(self.sites)
            item = probe.plan_site(site, sketches[site.name]) if asked else None
            if item is None or not is_narrow(item.grid):
                continue
            if site.name in probe.readers:
                found[site.name] = item
            elif self.sites is not None:
                raise ValueError(f"split.sites has {site.name}, which no Linear reads: it cannot be split")
        return found


def is_narrow(grid: Grid | None) -> bool:
    """Whether a tensor on this grid can be split; None: FP32."""
    return grid is not None and (grid.ranged or grid.per_token)
