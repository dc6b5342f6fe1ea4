"""Dynamic quantization: every token gets the range of its own values while the network runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantlab.config.checks import freeze
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, SiteSpec
from quantlab.network.sites import Site, matching_sites
from quantlab.network.taps import Pixels
from quantlab.quant.dynamic import DynamicGrid
from quantlab.quant.grid import AffineGrid


@dataclass(frozen=True, kw_only=True)
class Dynamic(Method):
    """The sites that the globs in ``sites`` match get a grid for every token; the rest is static, per tensor.

    Token-wise quantization of ZeroQuant (arXiv 2206.01861), section 3.1. These sites need no calibration.
    Scores and probabilities have a grid for every query of every head. The pixels of images have no tokens:
    they stay static.
    """

    sites: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        freeze(self)

    def check(self, sites: Sequence[Site]) -> None:
        matching_sites(self.sites, sites, "method.sites")

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        spec = super().site_spec(site, bits)
        if (
            spec is None
            or not isinstance(spec.grid, AffineGrid)
            or not site.matches(self.sites)
            or isinstance(site.tap, Pixels)
        ):
            return spec
        return replace(spec, grid=DynamicGrid(bits=spec.grid.bits, symmetric=spec.grid.symmetric))
