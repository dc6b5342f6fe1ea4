"""Integer-only outlier decomposition: two grids whose scales differ by a power of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from quantlab.calibration.probe import Probe
from quantlab.config.checks import freeze, whole
from quantlab.network.sites import Site
from quantlab.quant.grid import AffineGrid, Grid
from quantlab.quant.sketch import Sketch
from quantlab.quant.split import Rest, Split
from quantlab.quant.splits import fit_residual
from quantlab.splits.split import OperandSplit


@dataclass(frozen=True, kw_only=True)
class OutlierResidual(OperandSplit):
    """``x = clip(x) + rest``: the narrow grid clips, and the rest is on a coarse grid of scale ``2^k s``.

    Both products of a Linear run in integers with one weight, and the rest is zero but for outliers. The clip
    and k are those with the least squared error on the calibration rows. ``bits`` are the coarse grid's, or
    the site's if None. A site whose error is least without a clip is not split. It is our reading of
    ORQ-ViT's abstract (J. Systems Architecture 2025, doi 10.1016/j.sysarc.2025.103530), whose method is not
    public.
    """

    bits: int | None = None

    fits_grids: ClassVar[bool] = True

    def __post_init__(self) -> None:
        freeze(self)
        if self.bits is not None:
            whole("split.bits", self.bits, 2, 8)

    def check(self, sites: Sequence[Site], grids: Mapping[str, Grid | None]) -> None:
        super().check(sites, grids)
        for site in sites:
            grid = grids[site.name]
            if (self.sites is None or site.matches(self.sites)) and grid is not None and grid.per_token:
                raise ValueError(
                    f"split=outlier_residual needs grids that calibration fixes, but {site.name} has one for "
                    "each token: take another method or split=llm_int8"
                )

    def splits(self, probe: Probe, sketches: Mapping[str, Sketch]) -> dict[str, Split]:
        found: dict[str, Split] = {}
        for site, item in self.operands(probe, sketches).items():
            assert isinstance(item.grid, AffineGrid)
            bits = self.bits or min(item.grid.bits, 8)
            (lo, hi), exponent = fit_residual(sketches[site], item.grid, bits)
            if exponent > 0:
                found[site] = Rest(lo=lo, hi=hi, exponent=exponent, bits=bits)
        return found
