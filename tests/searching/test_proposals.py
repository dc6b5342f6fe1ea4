"""Ladders against enumeration of all candidates; a worker's proposals where the needed sites are known."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import evaluated_candidate, search_of, site_costs, space_named

from quantlab.methods.bits import Precision
from quantlab.searching.alternatives import OWN
from quantlab.searching.costs import Cost, cost_of
from quantlab.searching.proposals import bisect, greedy_ladder, least_loss, optimal_ladder, thinner
from quantlab.searching.search_config import bits_of
from quantlab.searching.space import Choices, Space
from quantlab.searching.worker import SearchWorker

CHOICES = (("int8", "fp16"), ("int4", "int8", "fp16"))

Losses = dict[tuple[str, Precision], float]


@st.composite
def problems(draw: st.DrawFn, most: int = 5) -> tuple[Space, Cost, Losses]:
    """A small space, a cost, and a predicted loss of each narrowing, which grows the narrower it is."""
    count, choices = draw(st.integers(1, most)), draw(st.sampled_from(CHOICES))
    space = space_named([f"{index}.x" for index in range(count)], choices)
    losses = {}
    for v in space.variables:
        steps = draw(st.lists(st.integers(0, 20), min_size=len(choices) - 1, max_size=len(choices) - 1))
        for index, choice in enumerate(choices[:-1]):
            losses[v.name, choice] = float(sum(steps[index:]))
    kind = draw(st.sampled_from(["sites16", "average_bits", "bytes", "milliseconds"]))
    if kind != "milliseconds":
        return space, cost_of(kind, space), losses
    milliseconds = st.floats(0.01, 2).map(lambda ms: round(ms, 3))
    table = {
        (v.name, c): draw(milliseconds) * bits_of(c) if c != choices[0] else 0.0 for v, c in pairs(space)
    }
    return space, cost_of("latency", space, table), losses


def pairs(space: Space) -> list[tuple]:  # type: ignore[type-arg]
    return list(product(space.variables, space.choices))


def every(space: Space) -> list[Choices]:
    return list(product(space.choices, repeat=len(space.variables)))


def loss_of(space: Space, losses: Mapping[tuple[str, Precision], float], chosen: Choices) -> float:
    return sum(losses.get((v.name, c), 0.0) for v, c in zip(space.variables, chosen, strict=True))


@given(problem=problems())
@settings(deadline=None, max_examples=15)
def test_every_rung_loses_the_least_within_its_cost_and_costs_the_least_for_its_loss(
    problem: tuple[Space, Cost, Losses],
) -> None:
    space, cost, losses = problem
    rungs = optimal_ladder(space, cost, losses)
    prices = {one: cost.of(space, one) for one in every(space)}
    for rung in rungs:
        loss = loss_of(space, losses, rung)
        within = [one for one in prices if prices[one] <= prices[rung] + 1e-9]
        assert loss == pytest.approx(min(loss_of(space, losses, one) for one in within))
        assert prices[rung] == pytest.approx(
            min(p for one, p in prices.items() if loss_of(space, losses, one) <= loss)
        )
    assert [prices[rung] for rung in rungs] == sorted(prices[rung] for rung in rungs)
    assert len(set(rungs)) == len(rungs)
    assert prices[rungs[0]] == pytest.approx(min(prices.values()))
    assert loss_of(space, losses, rungs[-1]) == 0


@given(problem=problems())
@settings(deadline=None, max_examples=20)
def test_a_ladder_of_whole_costs_has_the_best_of_every_cost(problem: tuple[Space, Cost, Losses]) -> None:
    space, cost, losses = problem
    cost = site_costs(space)
    rungs = optimal_ladder(space, cost, losses)
    for limit in range(len(space.variables) + 1):
        least = min(loss_of(space, losses, one) for one in every(space) if cost.of(space, one) <= limit)
        assert any(
            cost.of(space, rung) <= limit and loss_of(space, losses, rung) == pytest.approx(least)
            for rung in rungs
        )


@given(data=st.data(), problem=problems(most=3))
@settings(deadline=None, max_examples=15)
def test_the_next_best_is_the_best_of_those_that_are_left(
    data: st.DataObject, problem: tuple[Space, Cost, Losses]
) -> None:
    space, cost, losses = problem
    limit = cost.of(space, data.draw(st.sampled_from(every(space))))
    known: list[Choices] = []
    left = [one for one in every(space) if cost.of(space, one) <= limit + 1e-9]
    while left:
        found = least_loss(space, cost, losses, limit, known)
        assert found in left
        least = min(loss_of(space, losses, one) for one in left)
        assert loss_of(space, losses, found) == pytest.approx(least, abs=1e-3)
        left.remove(found)
        known.append(found)
    assert least_loss(space, cost, losses, limit, known) is None


@given(problem=problems())
@settings(deadline=None)
def test_greedy_widens_one_variable_a_rung_from_all_narrow_to_all_wide(
    problem: tuple[Space, Cost, Losses],
) -> None:
    space, cost, losses = problem
    rungs = greedy_ladder(space, cost, losses)
    assert rungs[0] == space.narrow and rungs[-1] == space.wide
    assert len(space.variables) < len(rungs) <= (len(space.choices) - 1) * len(space.variables) + 1
    for one, other in pairwise(rungs):
        (changed,) = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        assert bits_of(changed[0]) < bits_of(changed[1])


@given(saved=st.lists(st.integers(1, 1000), min_size=2, max_size=6, unique=True))
def test_greedy_takes_what_saves_most_first(saved: list[int]) -> None:
    space = space_named([f"{index}.x" for index in range(len(saved))], ("int8", "fp16"))
    losses = {(v.name, "int8"): float(value) for v, value in zip(space.variables, saved, strict=True)}
    rungs = greedy_ladder(space, site_costs(space), losses)
    widened = [
        next(index for index in range(len(saved)) if one[index] != other[index])
        for one, other in pairwise(rungs)
    ]
    assert [saved[index] for index in widened] == sorted(saved, reverse=True)


@given(rungs=st.integers(1, 100), first=st.integers(0, 100))
def test_bisection_finds_the_cheapest_that_keeps_the_answers(rungs: int, first: int) -> None:
    """``first`` is the first feasible rung; beyond the last rung, none is feasible."""
    names, known, asked = [(f"int{index}",) for index in range(rungs)], {}, 0
    while (rung := bisect(names, known)) is not None:
        assert rung not in known
        known[rung] = None
        assert bisect(names, known) is None  # while it is tried
        known[rung] = names.index(rung) >= first
        asked += 1
    feasible = [names.index(rung) for rung, became in known.items() if became]
    assert min(feasible, default=None) == (first if first < rungs else None)
    assert asked <= math.ceil(math.log2(rungs)) + 1


@given(data=st.data(), problem=problems())
@settings(deadline=None, max_examples=20)
def test_the_worker_ends_at_exactly_the_sites_that_are_needed(
    data: st.DataObject, problem: tuple[Space, Cost, Losses]
) -> None:
    """Bisection and thinning end at the planted sites, however wrong the scores are."""
    space, cost, losses = problem
    planted = data.draw(st.sets(st.sampled_from(range(len(space.variables)))), label="planted")
    best, tried = driven(
        space, cost, {"kl": losses}, lambda one: all(one[i] == space.choices[-1] for i in planted)
    )
    needed = tuple(space.choices[-1 if index in planted else 0] for index in range(len(space.variables)))
    assert cost.of(space, best) == pytest.approx(cost.of(space, needed))
    assert [c == space.choices[-1] for c in best] == [c == space.choices[-1] for c in needed]
    if cost.name != "sites16":  # to which int4 and int8 are the same
        assert best == needed
    assert len(set(tried)) == len(tried)


def test_thinning_goes_past_a_choice_that_costs_as_much() -> None:
    space = space_named(["0.x"], ("int4", "int8", "fp16"))
    cost = Cost(
        name="latency", base=0.0, table={("0.x", "int4"): 0.0, ("0.x", "int8"): 8.0, ("0.x", "fp16"): 8.0}
    )
    assert thinner(space, cost, {}, space.wide, {}) == ("int4",)


def test_thinning_is_quick_where_the_scores_are_right() -> None:
    space = space_named([f"{index}.x" for index in range(60)], ("int8", "fp16"))
    losses = {(v.name, "int8"): float(index + 1) for index, v in enumerate(space.variables)}
    best, tried = driven(space, site_costs(space), {"kl": losses}, lambda one: set(one[50:]) == {"fp16"})
    assert best.count("fp16") == 10 and len(tried) <= 40


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_thinner_asks_for_halves_then_quarters_then_each_alone(size: int) -> None:
    space = space_named([f"{index}.x" for index in range(size)], ("int8", "fp16"))
    losses = {(v.name, "int8"): float(index) for index, v in enumerate(space.variables)}
    known, widths = {space.wide: True}, []
    while (candidate := thinner(space, site_costs(space), losses, space.wide, known)) is not None:
        known[candidate] = False
        widths.append(candidate.count("int8"))
    assert widths == sorted(widths, reverse=True) and widths[0] == max(1, size // 2)
    assert {one.index("int8") for one in known if one.count("int8") == 1} == set(range(size))


def test_thinner_keeps_what_narrowing_makes_no_cheaper() -> None:
    space = space_named(["0.x", "1.x"], ("int8", "fp16"))
    cost = cost_of(
        "latency",
        space,
        {("0.x", "int8"): 1.0, ("0.x", "fp16"): 1.0, ("1.x", "int8"): 1.0, ("1.x", "fp16"): 2.0},
    )
    known = {space.wide: True}
    assert thinner(space, cost, {}, space.wide, known) == ("fp16", "int8")
    assert thinner(space, cost, {}, space.wide, {**known, ("fp16", "int8"): False}) is None


@pytest.mark.parametrize("mode", ["accuracy", "pareto"])
def test_the_other_modes_ask_for_rungs_only(mode: str) -> None:
    space = space_named([f"{index}.x" for index in range(6)], ("int8", "fp16"))
    losses = {(v.name, "int8"): float(index + 1) for index, v in enumerate(space.variables)}
    limit = {"max_cost": 2.0} if mode == "accuracy" else {}
    tried = driven(space, site_costs(space), {"kl": losses}, lambda _: True, mode=mode, **limit)[1]
    assert tried and {chosen.count("fp16") for chosen in tried} <= (
        {2} if mode == "accuracy" else set(range(7))
    )
    if mode == "accuracy":
        assert tried == [("int8",) * 4 + ("fp16",) * 2]
    else:
        assert space.narrow in tried  # the reference is the front's other end


def driven(
    space: Space,
    cost: Cost,
    losses: Mapping[str, Losses],
    feasible: Callable[[Choices], bool],
    **settings: object,
) -> tuple[Choices, Sequence[Choices]]:
    """The best candidate and all that a worker proposes until its proposals end, from the reference on."""
    worker = SearchWorker(
        search=search_of(choices=space.choices, **{"cost": "average_bits", **settings}),
        space=space,
        cost=cost,
        losses={OWN: losses},
        runner=None,
        columns=[],
        judge=None,
        whole=0,  # type: ignore[arg-type]
    )
    evaluated, tried = [evaluated_candidate(space.wide, cost.of(space, space.wide), feasible=True)], []
    for _ in range(1000):
        best = min((one for one in evaluated if one.feasible), key=lambda one: one.cost)
        # One trial, an odd number: it is not the sampler's turn.
        history = SimpleNamespace(evaluated=evaluated, pending=set(), best=best, closest=best, trials=[best])
        proposal = worker.propose(history)  # type: ignore[arg-type]
        if proposal is None:
            return best.chosen, tried
        origin, chosen = proposal
        assert origin.split(":")[0] in ("integer program", "greedy", "thinner")
        tried.append(chosen)
        evaluated.append(
            evaluated_candidate(chosen, cost.of(space, chosen), feasible(chosen), number=len(evaluated))
        )
    raise AssertionError("the proposals do not end")
