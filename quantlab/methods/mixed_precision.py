"""Mixed precision: some sites keep 16 bits or FP32 (Bondarenko et al. 2021, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.config.checks import freeze, one_of
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, SiteSpec
from quantlab.network.sites import Site, matching_sites
from quantlab.quant.grid import grid_of


@dataclass(frozen=True, kw_only=True)
class MixedPrecision(Method):
    """The sites that the globs in ``keep`` match stay in ``format``; the rest is uniform."""

    keep: tuple[str, ...]
    format: str = "fp16"

    def __post_init__(self) -> None:
        freeze(self)
        one_of("method.format", self.format, ("fp16", "bf16", "int16", "fp32"))

    def check(self, sites: Sequence[Site]) -> None:
        matching_sites(self.keep, sites, "method.keep")

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        if not site.matches(self.keep):
            return super().site_spec(site, bits)
        grid = grid_of(self.format, bits.symmetric)
        return None if grid is None else SiteSpec(grid=grid)
