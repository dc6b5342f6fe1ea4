"""Settings of a search: ``search.*`` of ``conf/search.yaml``, where each is explained."""

from dataclasses import dataclass
from typing import Any

from quantlab.config.checks import at_least, folder_name, freeze, one_of, whole
from quantlab.methods.bits import Precision
from quantlab.quant.grid import grid_of
from quantlab.searching.alternatives import Alternative, Settings, alternatives_of, frozen_settings, name_of
from quantlab.sweeping.run_config import RunConfig

GROUPINGS = ("site", "role", "layer", "layer_role")
MODES = ("cost", "accuracy", "pareto")
COSTS = ("sites16", "average_bits", "bytes", "latency")
SAMPLERS = ("auto", "tpe", "gp", "nsga2", "random")
REFERENCES = ("all16", "fp32")
WIDE = 16  # bits


@dataclass(frozen=True, kw_only=True)
class Search:
    """A study's settings. A search decides activations, and among ``slots``; weights are quantized as in a
    trial."""

    name: str
    sites: tuple[str, ...]
    choices: tuple[Precision, ...]
    group_by: str
    mode: str
    max_drop: float
    max_cost: float | None
    decide: str
    reference: str
    cost: str
    budget: float
    trials: int | None
    sampler: str
    seeded: bool
    sensitivity_rows: int
    prune_p: float
    reuse_mb: float
    seed: int
    storage: str | None
    heartbeat_s: int
    worker: int = 0
    slots: tuple[Settings, ...] = ((),)

    def __post_init__(self) -> None:
        freeze(self)
        object.__setattr__(self, "slots", frozen_settings(self.slots))
        folder_name("search.name", self.name)
        one_of("search.group_by", self.group_by, GROUPINGS)
        one_of("search.mode", self.mode, MODES)
        one_of("search.cost", self.cost, COSTS)
        one_of("search.sampler", self.sampler, SAMPLERS)
        one_of("search.reference", self.reference, REFERENCES)
        one_of("search.decide", self.decide, ("estimate", "bound"))
        whole("search.sensitivity_rows", self.sensitivity_rows, 1)
        whole("search.heartbeat_s", self.heartbeat_s, 1)
        at_least("search.max_drop", self.max_drop, 0)
        at_least("search.reuse_mb", self.reuse_mb, 0)
        if self.trials is not None:
            whole("search.trials", self.trials, 1)
        if isinstance(self.prune_p, bool) or not 0 <= self.prune_p < 0.5:
            raise ValueError(f"search.prune_p must be in [0, 0.5), got {self.prune_p!r}")
        self._check_budget()
        self._check_limits()
        self._check_choices()

    @property
    def widest(self) -> Precision:
        """The choice with most bits."""
        return max(self.choices, key=bits_of)

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The names of the alternatives of ``slots``."""
        return tuple(map(name_of, self.slots))

    def _check_budget(self) -> None:
        at_least("search.budget", self.budget, 0)
        if self.budget < 2:
            raise ValueError(
                f"search.budget must be at least 2 evaluations of the whole set (the reference and one "
                f"candidate), got {self.budget!r}"
            )

    def _check_limits(self) -> None:
        if self.mode == "accuracy" and self.max_cost is None:
            raise ValueError("search.mode=accuracy needs search.max_cost, the most that an answer may cost")
        if self.mode != "accuracy" and self.max_cost is not None:
            raise ValueError(
                f"search.max_cost={self.max_cost} contradicts search.mode={self.mode}, which has no "
                f"limit of cost; best accuracy within a cost is search.mode=accuracy"
            )

    def _check_choices(self) -> None:
        for choice in self.choices:
            try:
                if grid_of(choice, symmetric=True) is None:
                    raise ValueError(
                        f"{choice!r} is no quantization: 16 bits (fp16, bf16, int16) are the widest here"
                    )
            except ValueError as error:
                raise ValueError(f"search.choices: {error}") from None
        widths = [bits_of(choice) for choice in self.choices]
        if len(set(widths)) < 2 or len(set(widths)) < len(widths):
            raise ValueError(
                f"search.choices must be at least two precisions of different bits, got "
                f"{list(self.choices)}: with one there is nothing to decide"
            )
        if self.cost == "latency" and len(self.slots) > 1:
            raise ValueError(
                "search.cost=latency is measured for one alternative of search.slots, which has "
                f"{len(self.slots)}: take another cost, or one alternative"
            )
        if self.cost == "sites16" and max(widths) < WIDE:
            raise ValueError(
                "search.cost=sites16 counts 16-bit sites, but search.choices has none of 16 bits"
            )


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """All settings of ``conf/search.yaml``. ``alternatives`` are built from ``search.slots``."""

    search: Search
    alternatives: tuple[Alternative, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alternatives:
            object.__setattr__(self, "alternatives", alternatives_of(self.search.slots, self))

    def of(self, alternative: str) -> "SearchConfig":
        """The config with an alternative, by its name."""
        return next(one for one in self.alternatives if one.name == alternative).applied(self)

    def require_one(self) -> None:
        """Raises ValueError if there are several alternatives."""
        if len(self.alternatives) > 1:
            raise ValueError(
                f"search.slots has {len(self.alternatives)} alternatives, which only quantlab search decides "
                "among: take one here"
            )


def bits_of(precision: Precision) -> int:
    """The number of bits of a quantized precision."""
    grid: Any = grid_of(precision, symmetric=True)
    return int(grid.bits)
