"""Proposals by predicted losses: ladders of candidates from cheap to dear, bisection on them, and thinning of
the best candidate.

Each function is pure: the next proposal follows from the study alone, so that several workers and a resumed
study agree on it. Candidates here are the precisions of one alternative.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from quantlab.methods.bits import Precision
from quantlab.searching.costs import Cost
from quantlab.searching.space import Choices, Space

STEPS = 33  # of a ladder whose costs are not whole numbers, or span more than MOST_STEPS
MOST_STEPS = 512
EPSILON = 1e-9

Losses = Mapping[tuple[str, Precision], float]  # by variable and choice; the widest choice loses nothing
Feasibility = Mapping[Choices, bool | None]  # of candidates: within the limit or not; None: not evaluated yet


def optimal_ladder(space: Space, cost: Cost, losses: Losses) -> list[Choices]:
    """For rising limits of cost, the candidate with the least predicted loss within each; cheapest first."""
    price = _prices(space, cost)
    limits = _limits(price, price.min(1).sum(), price.max(1).sum())
    best_within = (least_loss(space, cost, losses, cost.base + limit) for limit in limits)
    rungs = dict.fromkeys(chosen for chosen in best_within if chosen is not None)
    return sorted(rungs, key=lambda chosen: cost.of(space, chosen))


def least_loss(
    space: Space, cost: Cost, losses: Losses, limit: float, without: Iterable[Choices] = ()
) -> Choices | None:
    """The candidate with the least predicted loss that costs at most ``limit`` and is not in ``without``; the
    cheapest of equals. None if there is no such candidate.

    The predicted loss is the sum over variables. A 0-1 linear program with one unknown x[v, c] for each
    variable and choice: minimize sum x loss, with sum_c x[v, c] = 1 for every v and sum x price <= limit.
    Each candidate in ``without`` adds the cut sum_v x[v, chosen_v] <= variables - 1.
    """
    names, choices = [v.name for v in space.variables], space.choices
    loss = np.array([[max(losses.get((name, choice), 0.0), 0.0) for choice in choices] for name in names])
    price = _prices(space, cost)
    one_each = LinearConstraint(np.kron(np.eye(len(names)), np.ones(len(choices))), 1, 1)
    affordable = LinearConstraint(price.ravel()[None], -np.inf, limit - cost.base + EPSILON)
    cuts = [[choice == other for choice in chosen for other in choices] for chosen in without]
    excluded = [LinearConstraint(np.array(cuts, float), -np.inf, len(names) - 1)] if cuts else []
    least = _minimum(_shares(loss), [one_each, affordable, *excluded])
    if least is None:
        return None
    as_good = LinearConstraint(_shares(loss).ravel()[None], -np.inf, (_shares(loss) * least).sum() + EPSILON)
    cheapest = _minimum(_shares(price), [one_each, affordable, as_good, *excluded])
    picks = (least if cheapest is None else cheapest).argmax(1)
    return tuple(choices[pick] for pick in picks)


def greedy_ladder(space: Space, cost: Cost, losses: Losses) -> list[Choices]:
    """Starts with everything at its narrowest; each step widens the variable that saves most predicted loss
    for its cost."""
    current = list(space.precisions(space.narrow))
    rungs = [tuple(current)]
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
            return rungs
        current[best[1]] = best[2]
        rungs.append(tuple(current))


def bisect(rungs: Sequence[Choices], known: Feasibility) -> Choices | None:
    """The rung halfway between the dearest infeasible and the cheapest feasible one. None if they are
    neighbours, or if the rung between is being evaluated."""
    low, high = -1, len(rungs)
    for index, rung in enumerate(rungs):
        if known.get(rung):
            high = min(high, index)
    for index, rung in enumerate(rungs[:high]):
        if known.get(rung) is False:
            low = index
    middle = (low + high) // 2
    return rungs[middle] if low < middle < high and rungs[middle] not in known else None


def thinner(space: Space, cost: Cost, losses: Losses, best: Choices, known: Feasibility) -> Choices | None:
    """The best candidate with some variables narrowed to the next choice that costs less.

    Variables of the least predicted loss come first: half of them at once, then a quarter, and so on to each
    alone. None if all of these candidates are known.
    """
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
    """The narrower choices that cost less, narrowest first. Two choices can have the same latency."""
    narrower = space.choices[: space.choices.index(choice)]
    return [one for one in narrower if cost.table[variable, one] < cost.table[variable, choice]]


def _minimum(objective: np.ndarray, constraints: Sequence[LinearConstraint]) -> np.ndarray | None:
    """The solution as 0 and 1, (variables, choices); None if nothing satisfies the constraints."""
    solved = milp(
        objective.ravel(),
        integrality=np.ones(objective.size, dtype=int),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    return None if solved.x is None else np.asarray(solved.x.reshape(objective.shape)).round()


def _shares(x: np.ndarray) -> np.ndarray:
    """``x`` divided by its largest magnitude, since the solver's tolerances are absolute."""
    return np.asarray(x / max(np.abs(x).max(), np.finfo(float).tiny))


def _prices(space: Space, cost: Cost) -> np.ndarray:
    return np.array([[cost.table[v.name, choice] for choice in space.choices] for v in space.variables])


def _limits(price: np.ndarray, least: float, most: float) -> list[float]:
    whole = bool((price == price.round()).all()) and most - least <= MOST_STEPS
    steps = np.arange(least, most + 1) if whole else np.linspace(least, most, STEPS)
    return [float(step) for step in steps]
