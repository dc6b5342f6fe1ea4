"""The channels of the largest magnitudes in calibration are kept wide, as in QUIK (arXiv 2310.09259)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantlab.calibration.probe import Probe
from quantlab.config.checks import freeze, one_of, share, whole
from quantlab.network.sites import Site
from quantlab.quant.grid import Grid
from quantlab.quant.sketch import Sketch
from quantlab.quant.split import Columns, Split
from quantlab.quant.splits import top_channels
from quantlab.splits.split import OperandSplit


@dataclass(frozen=True, kw_only=True)
class TopChannels(OperandSplit):
    """The ``k`` channels of each operand, or its ``share`` of them rounded, are wide; weights in FP16.

    ``bits`` are those of the wide channels: 16 (FP16), or 8, a static grid of their own. Channels are ranked
    by their largest magnitude in calibration, and frozen.
    """

    k: int | None = None
    share: float | None = None
    bits: int = 16

    def __post_init__(self) -> None:
        freeze(self)
        one_of("split.bits", self.bits, (8, 16))
        if (self.k is None) == (self.share is None):
            raise ValueError(
                f"split.k or split.share says how many, and the other is null: got k={self.k} and "
                f"share={self.share}"
            )
        if self.k is not None:
            whole("split.k", self.k, 0)
        else:
            share("split.share", self.share)

    def check(self, sites: Sequence[Site], grids: Mapping[str, Grid | None]) -> None:
        super().check(sites, grids)
        if self.sites is None or self.k is None:
            return
        for site in sites:
            if site.matches(self.sites) and self.k > site.channels:
                raise ValueError(_too_many(self.k, site.name, site.channels))

    def splits(self, probe: Probe, sketches: Mapping[str, Sketch]) -> dict[str, Split]:
        found: dict[str, Split] = {}
        for site in self.operands(probe, sketches):
            sketch = sketches[site]
            k = self.k if self.k is not None else round((self.share or 0) * sketch.channels)
            if k > sketch.channels:
                raise ValueError(_too_many(k, site, sketch.channels))
            channels = top_channels(sketch.magnitudes(), k)
            if channels:
                found[site] = self._columns(channels, sketch)
        return found

    def _columns(self, channels: tuple[int, ...], sketch: Sketch) -> Columns:
        if self.bits == 16:
            return Columns(channels=channels)
        wide = list(channels)
        return Columns(channels=channels, lo=sketch.min[wide].min().item(), hi=sketch.max[wide].max().item())


def _too_many(k: int, site: str, channels: int) -> str:
    return f"split.k must be at most the {channels} channels of {site}, got {k}"
