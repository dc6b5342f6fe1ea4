"""The budget of a search: computed before anything is loaded, and refused if no candidate fits in."""

import re

import pytest
from searches import SearchLab, search_of, space_named

from quantlab.searching.budget import Budget
from quantlab.searching.search_run import open_checked_study
from quantlab.storage.memo import Memo

PAPER = space_named([f"{layer}.x" for layer in range(82)], ("int8", "fp16"))


def budget(whole: int, choosing: int | None = None, calibrating: int = 1000, **search: object) -> Budget:
    searched = search_of(**{"budget": 15, "sensitivity_rows": 32, **search})
    return Budget.of(searched, PAPER, whole, choosing or whole, calibrating)


@pytest.mark.parametrize(
    "asked, scores, candidates",
    [
        (budget(1600), 32 * 87, 12),  # 15 x 1600 - 32 x 87 - 1600 = 19616 rows
        (budget(1600, choosing=800), 32 * 87, 23),  # 800 of the reference, 2 x 800 of the answer: 18816 rows
        (budget(800, sensitivity_rows=16), 16 * 87, 12),
        (budget(1600, calibrating=10), 10 * 87, 13),
        (budget(1600, seeded=False), 0, 14),
        (budget(200), 32 * 87, 0),
    ],
)
def test_where_the_rows_go(asked: Budget, scores: int, candidates: int) -> None:
    assert (asked.scores, asked.candidates) == (scores, candidates)
    assert str(asked).endswith(f"the rest is {candidates} candidates in full")


def test_a_budget_that_its_scores_eat_is_refused_and_what_helps_is_named() -> None:
    """82 sites scored on 32 rows take 14 of 15 evaluations of 200 rows: "82 of 82 sites" is no answer."""
    message = (
        r"^search.budget=15 evaluations of 200 rows: 13.9 for the scores, 1 for the reference; the rest is 0 "
        r"candidates in full. Nothing could be tried: take search.budget=(\d+), "
        r"search.sensitivity_rows=(\d+), "
        r"search.group_by=layer_role, search.seeded=false, or more evaluation rows$"
    )
    with pytest.raises(ValueError, match=message) as raised:
        budget(200).check()
    found = re.match(message, str(raised.value))
    assert found is not None
    for helps in ({"budget": float(found[1])}, {"sensitivity_rows": int(found[2])}, {"seeded": False}):
        better = budget(200, **helps)
        better.check()
        assert better.candidates >= 5


def test_it_is_refused_before_the_weights_are_read(planted: SearchLab, tmp_path: object) -> None:
    with pytest.raises(
        ValueError, match=r"search.budget=2 evaluations of 64 rows: 8.75 for the scores, 1 for the "
    ):
        open_checked_study(planted.config("search.budget=2"), tmp_path, Memo())  # type: ignore[arg-type]
