"""Sites: the named places of a network where an activation can be quantized, and which of them a placement
picks."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from quantlab.config.checks import freeze, nearest, one_of
from quantlab.network.taps import Tap

NOTHING: Mapping[str, str] = MappingProxyType({})
SHOWN = 3  # sites that an error names


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named activation, ``"{layer}.{role}"``, and the taps that reach it: one or both.

    The tap ``made_at`` reaches every consumer of the tensor, the residual path included. ``read_at`` reaches
    only the matrix product that reads it, as integer runtimes quantize it. A site with ``read_at`` alone is
    the same tensor as an earlier site (``1.attn.in`` is ``0.layer.out``).

    The tap says which dimension of the tensor the channels are. Those of attention scores and probabilities
    are the heads.
    """

    name: str
    channels: int
    made_at: Tap | None = None
    read_at: Tap | None = None

    @property
    def tap(self) -> Tap:
        """The tap to use: where the tensor is made, or else where a product reads it."""
        tap = self.made_at or self.read_at
        assert tap is not None, f"{self.name} has no tap"
        return tap

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether any of the globs matches the site's name."""
        return any(fnmatch.fnmatchcase(self.name, pattern) for pattern in patterns)


class Selection(list[Site]):
    """The sites that a placement picks, in the network's order, and the names of those that it leaves out."""

    def __init__(self, picked: Iterable[Site], left_out: Sequence[str]):
        super().__init__(picked)
        self.left_out = left_out


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which sites are quantized: those that match ``sites`` and not ``exclude`` (globs of names).

    ``at="tensor"`` quantizes them where they are made, ``at="operand"`` where a matrix product reads them.
    """

    at: str
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        freeze(self)
        one_of("placement.at", self.at, ("tensor", "operand"))

    def select(self, sites: Iterable[Site], unreachable: Mapping[str, str] = NOTHING) -> Selection:
        """The picked sites in the network's order, each with the one tap that ``at`` names. Sites without
        that tap are left out.

        Raises ValueError if a glob matches nothing; with the reason, if it asks for a role that the
        architecture has ``unreachable``.
        """
        sites = list(sites)
        if self.at == "tensor":
            reachable = [replace(site, read_at=None) for site in sites if site.made_at is not None]
        else:
            reachable = [replace(site, made_at=None) for site in sites if site.read_at is not None]
        names = [site.name for site in reachable]
        picked = matching(self.sites, names, "placement.sites", unreachable)
        picked -= matching(self.exclude, names, "placement.exclude", unreachable)
        left_out = [site.name for site in sites if site.name not in picked]
        return Selection((site for site in reachable if site.name in picked), left_out)


def matching_sites(patterns: Sequence[str], sites: Sequence[Site], field: str) -> set[str]:
    """The names of the sites that any of the globs matches.

    Raises ValueError for a glob that matches none: with those that it matches in the network where the sites
    are a placement's :class:`Selection`, else with the nearest names.
    """
    left_out = sites.left_out if isinstance(sites, Selection) else ()
    names = [site.name for site in sites]
    for pattern in () if isinstance(patterns, str) else patterns:
        outside = fnmatch.filter(left_out, pattern)
        if outside and not fnmatch.filter(names, pattern):
            shown = ", ".join(outside[:SHOWN]) + (", ..." if len(outside) > SHOWN else "")
            raise ValueError(
                f"{field}: {pattern!r} matches nothing that the placement picks; the network has {shown}, "
                "but the placement leaves that out"
            )
    return matching(patterns, names, field)


def matching(
    patterns: Sequence[str], names: Sequence[str], field: str, unreachable: Mapping[str, str] = NOTHING
) -> set[str]:
    """The names that any of the globs matches.

    Raises ValueError for a glob that matches none, with the nearest names, or with the reason if it asks for
    an ``unreachable`` role.
    """
    if isinstance(patterns, str):  # its letters would pass for globs
        raise ValueError(f"{field} must be a list of globs, got {patterns!r}")
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            why = _why_unreachable(pattern, names, unreachable) or _nearest_site(pattern, names)
            raise ValueError(f"{field}: {pattern!r} matches nothing{why}")
        matched.update(hits)
    return matched


def _why_unreachable(pattern: str, names: Sequence[str], unreachable: Mapping[str, str]) -> str:
    layers = {name.split(".", 1)[0] for name in names if name[0].isdigit()}
    for role, reason in unreachable.items():
        if fnmatch.filter([f"{layer}.{role}" for layer in layers], pattern):
            return f": no tap reaches {role}, {reason}"
    return ""


def _nearest_site(pattern: str, names: Sequence[str]) -> str:
    roles = {f"*.{name.split('.', 1)[1]}" for name in names if name.split(".", 1)[0].isdigit()}
    layers = sum(name.endswith(".layer.out") for name in names)
    return nearest(pattern, [*roles, *names]) + (f"; layers are 0 to {layers - 1}" if layers else "")
