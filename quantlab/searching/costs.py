"""What a candidate costs: a sum over sites, so that integer programs can minimize it."""

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
    """``base`` and what each variable's choice adds."""

    name: str
    base: float
    table: CostTable  # by variable's name and choice

    def of(self, space: Space, chosen: Choices) -> float:
        """A candidate's cost."""
        return self.base + sum(self.table[v.name, c] for v, c in zip(space.variables, chosen, strict=True))

    def most(self, space: Space) -> float:
        """The dearest candidate's cost."""
        return self.base + sum(max(self.table[v.name, c] for c in space.choices) for v in space.variables)

    @property
    def unit(self) -> str:
        return UNITS[self.name]


def cost_of(name: str, space: Space, latencies: CostTable | None = None) -> Cost:
    """``sites16``: decided sites of 16 bits. ``average_bits``: mean over decided sites. ``bytes``: what the
    decided sites' tensors take a token, one value a channel. ``latency``: ``latencies``, measured on the
    runtime."""
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
