"""The cost of a candidate: a sum over its variables, so that an integer program can minimize it.

An alternative of transform, split and rounding costs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantlab.methods.bits import Precision
from quantlab.network.sites import Site
from quantlab.searching.search_config import WIDE, bits_of
from quantlab.searching.space import Choices, Space

UNITS = {"sites16": "16-bit sites", "average_bits": "bits", "bytes": "bytes a token", "latency": "ms"}

CostTable = Mapping[tuple[str, Precision], float]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """``base`` plus what each variable's choice adds, in :attr:`unit`."""

    name: str
    base: float
    table: CostTable  # by variable's name and choice

    def of(self, space: Space, chosen: Choices) -> float:
        """A candidate's cost."""
        pairs = zip(space.variables, space.precisions(chosen), strict=True)
        return self.base + sum(self.table[variable.name, choice] for variable, choice in pairs)

    def most(self, space: Space) -> float:
        """The cost of the most expensive candidate."""
        return self.base + sum(max(self.table[v.name, c] for c in space.choices) for v in space.variables)

    @property
    def unit(self) -> str:
        return UNITS[self.name]


def cost_of(name: str, space: Space, latencies: CostTable | None = None) -> Cost:
    """The cost named ``name`` over the decided sites.

    ``sites16``: number of 16-bit sites. ``average_bits``: mean bits of a site. ``bytes``: bytes of the sites'
    tensors a token, one value a channel. ``latency``: ms as measured, ``latencies``.
    """
    if name == "latency":
        assert latencies is not None
        return Cost(name=name, base=0.0, table=latencies)
    count = len(space.sites)

    def added(sites: Sequence[Site], choice: Precision) -> float:
        bits = bits_of(choice)
        if name == "sites16":
            return float(len(sites) if bits >= WIDE else 0)
        if name == "average_bits":
            return bits * len(sites) / count
        return sum(site.channels for site in sites) * bits / 8

    return Cost(
        name=name,
        base=0.0,
        table={(v.name, choice): added(v.sites, choice) for v in space.variables for choice in space.choices},
    )
