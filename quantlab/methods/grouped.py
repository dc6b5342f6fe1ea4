"""Data-driven groups of channels with a range each, and their bits under a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantlab.config.checks import freeze, one_of, whole
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, SiteSpec
from quantlab.network.sites import Site, matching_sites
from quantlab.quant.granularity import Granularity, PerGroup
from quantlab.quant.grouping import KMeansGroups, OptimalGroups

KINDS: Mapping[str, Callable[[int, int], Granularity]] = {
    "optimal": lambda k, seed: OptimalGroups(k=k),
    "kmeans": lambda k, seed: KMeansGroups(k=k, seed=seed),
    "equal": lambda k, seed: PerGroup(k=k),
}


@dataclass(frozen=True)
class GroupsOf:
    """The sites that the glob matches get ``k`` groups."""

    match: str
    k: int


@dataclass(frozen=True, kw_only=True)
class Grouped(Method):
    """The sites that the globs in ``sites`` match get ``k`` groups of channels with a range each; the rest is
    uniform. Without globs these are all sites of at least ``k`` channels, but scores and probabilities.

    ``by`` says how groups are found: ``optimal`` has the least expected error of all contiguous splits of the
    channels sorted by range, ``kmeans`` joins channels with alike extremes (RPTQ, arXiv 2304.01089), and
    ``equal`` cuts the sorted channels into equal groups (PEG). ``rules`` give other numbers of groups by
    site, ``{match: <glob>, k: <groups>}``; the last match wins. ``allocate_bits`` gives wide groups more bits
    and narrow ones fewer, 2 to 8, with the site's bits as their mean over the channels.
    """

    sites: tuple[str, ...] | None = None
    k: int
    by: str = "optimal"
    seed: int = 0
    rules: tuple[Any, ...] = ()
    allocate_bits: bool = False

    def __post_init__(self) -> None:
        freeze(self)
        object.__setattr__(self, "rules", tuple(map(_rule, self.rules)))
        one_of("method.by", self.by, KINDS)
        one_of("method.allocate_bits", self.allocate_bits, (False, True))
        whole("method.k", self.k, 1)
        whole("method.seed", self.seed, 0)

    def check(self, sites: Sequence[Site]) -> None:
        matching_sites([rule.match for rule in self.rules], sites, "method.rules")
        if self.sites is None:
            return
        grouped = matching_sites(self.sites, sites, "method.sites")
        for site in sites:
            if site.name in grouped and self.groups(site) > site.channels:
                raise ValueError(
                    f"method.k must be at most the {site.channels} channels of {site.name}, "
                    f"got {self.groups(site)}"
                )

    def groups(self, site: Site) -> int:
        """The number of groups at a site that the globs match."""
        return next((rule.k for rule in reversed(self.rules) if site.matches([rule.match])), self.k)

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        spec = super().site_spec(site, bits)
        if spec is None or not self._groups_at(site):
            return spec
        granularity = KINDS[self.by](self.groups(site), self.seed)
        return replace(spec, granularity=granularity, allocate_bits=self.allocate_bits)

    def _groups_at(self, site: Site) -> bool:
        if self.sites is None:
            return site.tap.axis == -1 and site.channels >= self.groups(site)
        return site.matches(self.sites)


def _rule(rule: Any) -> GroupsOf:
    if isinstance(rule, GroupsOf):
        return rule
    if not isinstance(rule, Mapping) or set(rule) != {"match", "k"}:
        raise ValueError(f"a rule of method.rules is {{match: <glob>, k: <groups>}}, got {rule!r}")
    whole(f"method.rules[{rule['match']}]", rule["k"], 1)
    return GroupsOf(match=str(rule["match"]), k=rule["k"])
