"""Evaluation of candidates: equal to a trial's answers, stopped early, and judged in pairs of rows."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searches import PLANTED, ROWS, SearchLab, candidates

from quantlab.engines.insert import ENGINES, insert
from quantlab.searching.evaluate import CandidateOutcomes, evaluate_candidate, spread
from quantlab.searching.judge import Judge
from quantlab.tasks.glue import Glue

ALL_ROWS = np.ones(ROWS, bool)


@given(count=st.integers(1, 300))
def test_every_prefix_of_the_order_lies_evenly(count: int) -> None:
    """Among the first k numbers, the counts in all halves, quarters, ... of the range differ by at most 1."""
    order = spread(count)
    assert sorted(order) == list(range(count))
    width = 1 << max(1, (count - 1).bit_length())
    for k in range(1, count + 1):
        largest = max(b - a for a, b in itertools.pairwise(sorted([*order[:k], -1, count])))
        assert largest <= 2 * width / k + 1


@given(power=st.integers(0, 8))
def test_of_a_power_of_two_every_prefix_is_as_even_as_can_be(power: int) -> None:
    order = spread(1 << power)
    for parts in (1 << p for p in range(power + 1)):
        size = (1 << power) // parts
        for k in range(1, len(order) + 1):
            counts = np.bincount(np.array(order[:k]) // size, minlength=parts)
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("engine", ENGINES)
def test_complete_answers_are_those_of_the_inserted_plan(planted: SearchLab, engine: str) -> None:
    """Bit for bit, with and without reused layers, against ``insert`` of the whole plan."""
    config = planted.config(f"engine={engine}")
    with planted.prepared(f"engine={engine}") as prepared:
        runner, columns, material = (
            prepared.runner(),
            prepared.label_columns,
            prepared.material,
        )
        drawn = [prepared.space.wide, *candidates(prepared.space, 2), prepared.space.narrow]
        plans = [prepared.plan(chosen) for chosen in drawn]
        found = []
        for chosen in drawn:
            found.append(evaluate_candidate(runner, chosen, columns, None))
            runner.keep(chosen)
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    for outcome, plan in zip(found, plans, strict=True):
        assert outcome.complete and outcome.rows == ROWS
        with insert(material.model, plan, config.engine):
            np.testing.assert_array_equal(outcome.logits, material.predict("").logits)


def test_a_hopeless_candidate_is_given_up_after_the_first_prefix_and_a_sound_one_never(
    planted: SearchLab,
) -> None:
    with planted.prepared("evaluation.batch_size=16") as prepared:
        runner, columns = prepared.runner(), prepared.label_columns
        judge, rows = prepared.judge(runner)
        assert rows == ROWS
        asked: list[int] = []

        def hopeless(outcome: CandidateOutcomes) -> bool:
            asked.append(outcome.rows)
            return judge.exceeds_p(outcome, 2.0) < 0.05

        outcome = evaluate_candidate(runner, prepared.space.narrow, columns, hopeless)
        assert asked == [16] == [outcome.rows] and not outcome.complete
        assert np.isnan(outcome.logits[~outcome.answered]).all()
        assert np.isfinite(outcome.logits[outcome.answered]).all()
        asked.clear()
        sound = tuple("fp16" if v.name in PLANTED else "int8" for v in prepared.space.variables)
        assert evaluate_candidate(runner, sound, columns, hopeless).complete
        assert asked == [16, 32]  # the last prefix is all: there is nothing left to give up
        in_full = evaluate_candidate(runner, prepared.space.narrow, columns, None)
        np.testing.assert_array_equal(in_full.logits[outcome.answered], outcome.logits[outcome.answered])


@pytest.mark.parametrize(
    "batch_size, prefixes", [(4, [4, 8, 16, 32]), (1, [4, 8, 16, 32]), (16, [16, 32]), (64, [])]
)
def test_prefixes_grow_twofold(planted: SearchLab, batch_size: int, prefixes: list[int]) -> None:
    with planted.prepared(f"evaluation.batch_size={batch_size}") as prepared:
        asked: list[int] = []
        runner, columns = prepared.runner(), prepared.label_columns
        assert evaluate_candidate(
            runner, prepared.space.wide, columns, lambda o: bool(asked.append(o.rows))
        ).complete
        assert asked == prefixes


def judged(right: np.ndarray, reference_right: np.ndarray) -> tuple[Judge, CandidateOutcomes]:
    """A judge and the outcomes of a candidate that has these rows right."""
    labels = np.arange(len(right)) % 2
    logits = np.eye(2, dtype=np.float32)
    task = Glue(name="x", labels=("a", "b"), metrics=("accuracy",), config="qnli", text=("s",), data_dir=".")
    judge = Judge(task=task, labels=labels, reference=logits[np.where(reference_right, labels, 1 - labels)])
    answered = np.ones(len(right), bool)
    return judge, CandidateOutcomes(logits=logits[np.where(right, labels, 1 - labels)], answered=answered)


def test_drops_are_points_on_the_answered_rows() -> None:
    random = np.random.default_rng(0)
    reference, right = random.random(40) < 0.9, random.random(40) < 0.6
    judge, outcome = judged(right, reference)
    answered = random.random(40) < 0.5
    part = CandidateOutcomes(logits=np.where(answered[:, None], outcome.logits, np.nan), answered=answered)
    for rows, one in ((slice(None), outcome), (answered, part)):
        np.testing.assert_array_equal(judge.right(one), right[rows])
        assert judge.metric(one) == pytest.approx(right[rows].mean())
        assert judge.drop(one) == pytest.approx(100 * (reference[rows].mean() - right[rows].mean()))
        low, high, upper = judge.interval(one)
        assert low < judge.drop(one) < upper < high
    assert judge.behind_p(part, right) == 1
    assert judge.behind_p(part, np.ones(40, bool)) < judge.behind_p(part, reference) <= 1


def test_nan_is_wrong() -> None:
    judge, outcome = judged(np.ones(8, bool), np.ones(8, bool))
    outcome.logits[3] = np.nan
    outcome.logits[5, 0] = np.nan
    assert judge.right(outcome).tolist() == [True, True, True, False, True, False, True, True]
    assert judge.drop(outcome) == pytest.approx(25)
    assert math.isfinite(judge.interval(outcome)[2])
