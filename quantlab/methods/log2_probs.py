"""Attention probabilities on a grid of powers of two; the rest is uniform."""

from dataclasses import dataclass, replace

from quantlab.config.checks import freeze
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, SiteSpec
from quantlab.network.sites import Site
from quantlab.quant.grid import BYTE_BITS, AffineGrid
from quantlab.quant.log2 import MOST_BITS, Log2Grid


@dataclass(frozen=True, kw_only=True)
class Log2Probs(Method):
    """The sites that the globs in ``sites`` match get a log2 grid where they have up to 8 bits; the rest is
    uniform, per tensor.

    A log2 grid has 7 bits at most. More would add no value above the least normal number, and above 8 bits a
    uniform grid is finer.

    FQ-ViT (Lin et al. 2022, arXiv 2111.13824), section 3.3. A placement may leave out these sites.
    """

    sites: tuple[str, ...] = ("*.attn.probs",)

    def __post_init__(self) -> None:
        freeze(self)

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        spec = super().site_spec(site, bits)
        if spec is None or not isinstance(spec.grid, AffineGrid) or not site.matches(self.sites):
            return spec
        if spec.grid.bits > BYTE_BITS:
            return spec
        return replace(spec, grid=Log2Grid(bits=min(spec.grid.bits, MOST_BITS)))
