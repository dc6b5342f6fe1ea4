"""Candidates that the scores speak for, before a sampler is asked: a ladder of best guesses, then the best
one thinned.

Each function is pure: what comes next follows from what is known, so several workers and resumed studies
agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from quantlab.methods.bits import Precision
from quantlab.searching.costs import Cost
from quantlab.searching.space import Choices, Space

STEPS = 33  # of a ladder whose costs are no small whole numbers
MOST_STEPS = 512
EPSILON = 1e-9

Losses = Mapping[tuple[str, Precision], float]  # by variable and choice; the widest choice loses nothing


@dataclass(frozen=True, kw_only=True)
class Known:
    """What became of a candidate: whether it keeps within the limit, or None while it is being tried."""

    feasible: bool | None


def ladder(space: Space, cost: Cost, losses: Losses) -> list[Choices]:
    """The candidates with the least predicted loss within more and more cost, cheapest first."""
    price = _prices(space, cost)
    limits = _limits(price, price.min(1).sum(), price.max(1).sum())
    found = (least_loss(space, cost, losses, cost.base + limit) for limit in limits)
    rungs = dict.fromkeys(chosen for chosen in found if chosen is not None)
    return sorted(rungs, key=lambda chosen: cost.of(space, chosen))


def least_loss(
    space: Space, cost: Cost, losses: Losses, limit: float, without: Iterable[Choices] = ()
) -> Choices | None:
    """The candidate with the least predicted loss that costs at most ``limit`` and is none of ``without``; of
    equals, the cheapest. None where there is none.

    The predicted loss is the sum of the variables' own. A 0-1 linear program with one unknown for each
    variable and choice; each candidate that is left out is a cut: not all of its choices at once.
    """
    names, choices = [v.name for v in space.variables], space.choices
    loss = np.array([[max(losses.get((name, choice), 0.0), 0.0) for choice in choices] for name in names])
    price = _prices(space, cost)
    one_each = LinearConstraint(np.kron(np.eye(len(names)), np.ones(len(choices))), 1, 1)
    affordable = LinearConstraint(price.ravel()[None], -np.inf, limit - cost.base + EPSILON)
    cuts = [[choice == other for choice in chosen for other in choices] for chosen in without]
    left = [LinearConstraint(np.array(cuts, float), -np.inf, len(names) - 1)] if cuts else []
    least = _minimum(_shares(loss), [one_each, affordable, *left])
    if least is None:
        return None
    as_good = LinearConstraint(_shares(loss).ravel()[None], -np.inf, (_shares(loss) * least).sum() + EPSILON)
    cheapest = _minimum(_shares(price), [one_each, affordable, as_good, *left])
    picks = (least if cheapest is None else cheapest).argmax(1)
    return tuple(choices[pick] for pick in picks)


def greedy(space: Space, cost: Cost, losses: Losses) -> list[Choices]:
    """From everything at its narrowest, the widening that saves most predicted loss for its cost, again and
    again."""
    current = list(space.narrow)
    found = [tuple(current)]
    while True:
        best: tuple[float, int, Precision] | None = None
        for index, v in enumerate(space.variables):
            for choice in space.choices[space.choices.index(current[index]) + 1 :]:
                saved = losses.get((v.name, current[index]), 0.0) - losses.get((v.name, choice), 0.0)
                extra = cost.table[v.name, choice] - cost.table[v.name, current[index]]
                gain = saved / max(extra, EPSILON)
                if best is None or gain > best[0]:
                    best = (gain, index, choice)
        if best is None:
            return found
        current[best[1]] = best[2]
        found.append(tuple(current))


def bisect(rungs: Sequence[Choices], known: Mapping[Choices, Known]) -> Choices | None:
    """The rung halfway between the dearest that fails and the cheapest that keeps the answers; None where
    they meet, or where the one that is asked for is being tried."""
    low, high = -1, len(rungs)
    for index, rung in enumerate(rungs):
        if rung in known and known[rung].feasible:
            high = min(high, index)
    for index, rung in enumerate(rungs[:high]):
        if rung in known and known[rung].feasible is False:
            low = index
    middle = (low + high) // 2
    return rungs[middle] if low < middle < high and rungs[middle] not in known else None


def thinner(
    space: Space, cost: Cost, losses: Losses, best: Choices, known: Mapping[Choices, Known]
) -> Choices | None:
    """The best candidate with some of its wide variables narrowed to the next choice that costs less, those
    of least predicted loss first: half of them, a quarter, and so on to each alone. None where all of these
    are known."""
    steps = [
        (index, cheaper[-1])
        for index, (variable, choice) in enumerate(zip(space.variables, best, strict=True))
        if (cheaper := _cheaper(space, cost, variable.name, choice))
    ]
    steps.sort(key=lambda step: losses.get((space.variables[step[0]].name, step[1]), 0.0))
    size = max(1, len(steps) // 2)
    while steps:
        for start in range(0, len(steps), size):
            candidate = list(best)
            for index, choice in steps[start : start + size]:
                candidate[index] = choice
            if tuple(candidate) not in known:
                return tuple(candidate)
        if size == 1:
            return None
        size = max(1, size // 2)
    return None


def _cheaper(space: Space, cost: Cost, variable: str, choice: Precision) -> list[Precision]:
    """The narrower choices that cost less, narrowest first; by latency, two choices can cost the same."""
    narrower = space.choices[: space.choices.index(choice)]
    return [one for one in narrower if cost.table[variable, one] < cost.table[variable, choice]]


def _minimum(objective: np.ndarray, constraints: Sequence[LinearConstraint]) -> np.ndarray | None:
    """Ones where variables (rows) take choices (columns); None where nothing satisfies the constraints."""
    solved = milp(
        objective.ravel(),
        integrality=np.ones(objective.size, dtype=int),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    return None if solved.x is None else np.asarray(solved.x.reshape(objective.shape)).round()


def _shares(x: np.ndarray) -> np.ndarray:
    """Shares of the largest: the solver's tolerances are absolute."""
    return np.asarray(x / max(np.abs(x).max(), np.finfo(float).tiny))


def _prices(space: Space, cost: Cost) -> np.ndarray:
    return np.array([[cost.table[v.name, choice] for choice in space.choices] for v in space.variables])


def _limits(price: np.ndarray, least: float, most: float) -> list[float]:
    whole = bool((price == price.round()).all()) and most - least <= MOST_STEPS
    steps = np.arange(least, most + 1) if whole else np.linspace(least, most, STEPS)
    return [float(step) for step in steps]
