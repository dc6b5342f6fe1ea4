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
    """Proposes candidates by the scores.

    ``losses``: predicted losses by alternative and score, best predictor first. The alternative that is
    predicted to lose least with everything at its narrowest comes first.
    """

    search: Search
    space: Space
    cost: Cost
    losses: Mapping[str, Mapping[str, Losses]]

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
    def ladders(self) -> dict[str, list[list[Choices]]]:
        """Candidates from cheap to dear, by origin: one ladder for each alternative."""
        found: dict[str, list[list[Choices]]] = {}
        for slots, scores in sorted(self.losses.items(), key=lambda item: self._narrowest_loss(item[1])):
            for score, losses in scores.items():
                for name, ladder in (("integer program", optimal_ladder), ("greedy", greedy_ladder)):
                    rungs = [self.space.with_slots(r, slots) for r in ladder(self.space, self.cost, losses)]
                    found.setdefault(f"{name}: {score}", []).append(rungs)
        return found

    def _narrowest_loss(self, scores: Mapping[str, Losses]) -> float:
        losses, narrowest = next(iter(scores.values()), {}), self.space.choices[0]
        return sum(losses.get((v.name, narrowest), 0.0) for v in self.space.variables)

    def _proposals(self, history: History, known: Feasibility) -> Iterator[tuple[str, Choices]]:
        for origin, ladders in self.ladders.items():
            for rungs in ladders:
                yield from (
                    (origin, pick) for pick in self._picks(rungs, history, known) if pick not in known
                )
        if self.search.mode == "cost" and self.ladders:
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
        """The best candidate thinned; where that is exhausted, the least predicted loss below its cost in its
        alternative."""
        best, space = history.best, self.space
        if best is None:
            return
        slots, precisions = space.slots(best.chosen), space.precisions(best.chosen)
        losses = next(iter(self.losses[slots].values()))
        tried = {space.precisions(one): value for one, value in known.items() if space.slots(one) == slots}
        thinned = thinner(space, self.cost, losses, precisions, tried)
        if thinned is not None:
            yield "thinner", space.with_slots(thinned, slots)
        elif len(history.trials) % 2 == 0:  # in turns with the sampler
            cheaper = best.cost - self._least_step()
            exchanged = least_loss(space, self.cost, losses, cheaper, tried)
            if exchanged is not None:
                yield "next best", space.with_slots(exchanged, slots)

    def _least_step(self) -> float:
        """Half of the smallest difference between two prices in the cost's table."""
        prices = {self.cost.table[v.name, c] for v in self.space.variables for c in self.space.choices}
        steps = [abs(a - b) for a in prices for b in prices if abs(a - b) > SAME_COST]
        return min(steps) / 2 if steps else 0.0

    def _cost(self, chosen: Choices) -> float:
        return self.cost.of(self.space, chosen)
