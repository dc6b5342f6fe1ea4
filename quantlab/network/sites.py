"""Sites: the named places that an activation passes, ``"{layer}.{role}"``, and which of them a placement
quantizes."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantlab.config.checks import freeze, nearest, one_of


@dataclass(frozen=True)
class Tap:
    """Where a tensor can be got hold of: a module's first input or its output, or inside its attention
    function."""

    module: str
    at: str  # "input", "output", "scores" or "probs"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One row of an architecture's table: a named tensor and its taps.

    ``tensor`` reaches every consumer of the tensor, the residual path included. ``operand`` reaches only the
    matrix product that reads it, as integer runtimes quantize it. A place that has only an operand is the
    same tensor as another place's (``1.attn.in`` is ``0.layer.out``).
    """

    name: str
    channels: int
    tensor: Tap | None
    operand: Tap | None


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place as one placement quantizes it: its name, the tap, and the size of its channel dimension.

    Channels are the last dimension of the tensor; for attention scores and probabilities they are the heads.
    """

    name: str
    channels: int
    tap: Tap

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether any of the globs matches the site's name."""
        return any(fnmatch.fnmatchcase(self.name, pattern) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which places are quantized at all: globs of names, less other globs, at their tensors or only as
    operands."""

    at: str
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        freeze(self)
        one_of("placement.at", self.at, ("tensor", "operand"))

    def select(self, places: Iterable[Place]) -> list[Site]:
        """The sites, in the network's order. Raises ValueError where a glob matches nothing."""
        tapped = [
            Site(name=place.name, channels=place.channels, tap=tap)
            for place in places
            if (tap := place.tensor if self.at == "tensor" else place.operand) is not None
        ]
        names = [site.name for site in tapped]
        kept = matching(self.sites, names, "placement.sites") - matching(
            self.exclude, names, "placement.exclude"
        )
        return [site for site in tapped if site.name in kept]


def matching(patterns: Sequence[str], names: Sequence[str], field: str) -> set[str]:
    """The names that any glob matches. Raises ValueError for a glob that matches none, with the nearest
    names."""
    if isinstance(patterns, str):  # its letters would pass for globs
        raise ValueError(f"{field} must be a list of globs, got {patterns!r}")
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise ValueError(f"{field}: {pattern!r} matches nothing{_nearest_site(pattern, names)}")
        matched.update(hits)
    return matched


def _nearest_site(pattern: str, names: Sequence[str]) -> str:
    roles = {f"*.{name.split('.', 1)[1]}" for name in names if name.split(".", 1)[0].isdigit()}
    layers = sum(name.endswith(".layer.out") for name in names)
    return nearest(pattern, [*roles, *names]) + (f"; layers are 0 to {layers - 1}" if layers else "")
