"""The same bits everywhere, and none at all."""

from dataclasses import dataclass

from torch import nn

from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, SiteSpec
from quantlab.network.sites import Site
from quantlab.quant.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Every site per tensor, at ``bits.activations``."""


@dataclass(frozen=True, kw_only=True)
class Fp32(Method):
    """Nothing is quantized: the reference."""

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        return None

    def weight_grid(self, parameter: str, module: nn.Module, bits: Bits) -> Grid | None:
        return None
