"""Chooses the next candidate from what the scores predict and what has been evaluated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantlab.searching.costs import Cost
from quantlab.searching.history import History
from quantlab.searching.proposals import (
    Feasibility,
    Losses,
    bisect,
    greedy_ladder,
    least_loss,
    optimal_ladder,
    thinner,
)
from quantlab.searching.search_config import Search
from quantlab.searching.space import Choices, Space

RUNGS_OF_A_FRONT = 9
SAME_COST = 1e-9  # costs are sums of floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposer:
    """Proposes candidates by the scores. ``losses``: predicted losses by score, best predictor first."""

    search: Search
    space: Space
    cost: Cost
    losses: Mapping[str, Losses]

    def propose(self, history: History) -> tuple[str, Choices] | None:
        """The next candidate and its origin. None: ask the sampler."""
        nothing_complete = self.search.mode == "cost" and history.closest is None
        if nothing_complete and self.space.wide not in history.pending:
            return "everything at its widest", self.space.wide  # the answer if nothing is within the limit
        if not self.search.seeded:
            return None
        known: dict[Choices, bool | None] = {one.chosen: one.feasible for one in history.evaluated}
        known |= dict.fromkeys(history.pending)
        return next(self._proposals(history, known), None)

    @cached_property
    def ladders(self) -> dict[str, dict[str, list[Choices]]]:
        """Candidates from cheap to dear, by score and by the way they are computed."""
        return {
            score: {
                "integer program": optimal_ladder(self.space, self.cost, losses),
                "greedy": greedy_ladder(self.space, self.cost, losses),
            }
            for score, losses in self.losses.items()
        }

    def _proposals(self, history: History, known: Feasibility) -> Iterator[tuple[str, Choices]]:
        for score, ladders in self.ladders.items():
            for name, rungs in ladders.items():
                picks = self._picks(rungs, history, known)
                yield from ((f"{name}: {score}", pick) for pick in picks if pick not in known)
        if self.search.mode == "cost" and self.losses:
            yield from self._cheaper_than_the_best(history, known)

    def _picks(self, rungs: list[Choices], history: History, known: Feasibility) -> list[Choices]:
        """The rungs of one ladder that this mode wants evaluated next."""
        if self.search.mode == "cost":
            best = history.best
            rung = bisect([r for r in rungs if best is None or self._cost(r) < best.cost], known)
            return [] if rung is None else [rung]
        if self.search.mode == "accuracy":
            assert self.search.max_cost is not None
            return [r for r in rungs if self._cost(r) <= self.search.max_cost][-1:]
        return [rungs[i] for i in np.linspace(0, len(rungs) - 1, RUNGS_OF_A_FRONT).round().astype(int)]

    def _cheaper_than_the_best(self, history: History, known: Feasibility) -> Iterator[tuple[str, Choices]]:
        """The best candidate thinned; where that is exhausted, the least predicted loss below its cost."""
        best, losses = history.best, next(iter(self.losses.values()))
        if best is None:
            return
        thinned = thinner(self.space, self.cost, losses, best.chosen, known)
        if thinned is not None:
            yield "thinner", thinned
        elif len(history.trials) % 2 == 0:  # in turns with the sampler
            cheaper = best.cost - self._least_step()
            exchanged = least_loss(self.space, self.cost, losses, cheaper, known)
            if exchanged is not None:
                yield "next best", exchanged

    def _least_step(self) -> float:
        """Half of the smallest difference between two prices in the cost's table."""
        prices = {self.cost.table[v.name, c] for v in self.space.variables for c in self.space.choices}
        steps = [abs(a - b) for a in prices for b in prices if abs(a - b) > SAME_COST]
        return min(steps) / 2 if steps else 0.0

    def _cost(self, chosen: Choices) -> float:
        return self.cost.of(self.space, chosen)
