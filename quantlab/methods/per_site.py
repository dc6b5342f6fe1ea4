"""Precisions site by site over another method: what a search finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, SiteSpec
from quantlab.network.sites import Site, matching_sites
from quantlab.plan.edits import Edit
from quantlab.quant.grid import Grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class PerSite(Method):
    """The method ``base``, with other bits where a rule ``{match: <glob of sites>, bits: <precision>}`` says
    so.

    The last match wins, over ``bits.rules`` too.
    """

    base: Method
    rules: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", Bits(rules=self.rules).rules)

    def check(self, sites: Sequence[Site]) -> None:
        self.base.check(sites)
        matching_sites([rule.match for rule in self.rules], sites, "method.rules")

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        return self.base.site_spec(site, replace(bits, rules=(*bits.rules, *self.rules)))

    def edits(self, model: PreTrainedModel, bits: Bits) -> tuple[Edit, ...]:
        return self.base.edits(model, bits)

    def weight_grid(self, parameter: str, module: nn.Module, bits: Bits) -> Grid | None:
        return self.base.weight_grid(parameter, module, bits)
