"""Per-embedding-group quantization (Bondarenko et al. 2021, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantlab.config.checks import freeze
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, SiteSpec
from quantlab.network.sites import Site, matching_sites
from quantlab.quant.granularity import PerGroup


@dataclass(frozen=True, kw_only=True)
class Peg(Method):
    """The sites that the globs in ``sites`` match get ``k`` groups of channels with a range each; the rest is
    uniform.

    ``permute="range"`` sorts a site's channels by the width of their range first, so that outliers share a
    group.
    """

    sites: tuple[str, ...]
    k: int
    permute: str = "range"

    def __post_init__(self) -> None:
        freeze(self)
        self.granularity()

    def granularity(self) -> PerGroup:
        """The groups that the sites get. Raises ValueError on a bad ``k`` or ``permute``."""
        return PerGroup(k=self.k, permute=self.permute)

    def check(self, sites: Sequence[Site]) -> None:
        names = matching_sites(self.sites, sites, "method.sites")
        for site in sites:
            if site.name in names and self.k > site.channels:
                raise ValueError(
                    f"method.k must be at most the {site.channels} channels of {site.name}, got {self.k}"
                )

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        spec = super().site_spec(site, bits)
        return replace(spec, granularity=self.granularity()) if spec and site.matches(self.sites) else spec
