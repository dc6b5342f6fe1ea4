"""Sites: the named places of a network where an activation can be quantized, and which of them a placement
picks."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from quantlab.config.checks import freeze, nearest, one_of
from quantlab.network.taps import Tap

NOTHING: Mapping[str, str] = MappingProxyType({})


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

    def select(self, sites: Iterable[Site], unreachable: Mapping[str, str] = NOTHING) -> list[Site]:
        """The picked sites in the network's order, each with the one tap that ``at`` names. Sites without
        that tap are left out.

        Raises ValueError if a glob matches nothing; with the reason, if it asks for a role that the
        architecture has ``unreachable``.
        """
        if self.at == "tensor":
            reachable = [replace(site, read_at=None) for site in sites if site.made_at is not None]
        else:
            reachable = [replace(site, made_at=None) for site in sites if site.read_at is not None]
        names = [site.name for site in reachable]
        picked = matching(self.sites, names, "placement.sites", unreachable)
        picked -= matching(self.exclude, names, "placement.exclude", unreachable)
        return [site for site in reachable if site.name in picked]


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
