"""Draws and splits: classes in their shares, the same on every machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from quantlab.evaluation.answering import Evaluation
from quantlab.tasks.examples import Texts
from quantlab.tasks.sampling import FEWEST, Purpose, drawn, held_out, shuffled_rows

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=300).map(np.array)
SEEDS = st.integers(0, 2**32)


@properties
@given(LABELS, SEEDS, st.sampled_from(Purpose), st.floats(0, 1))
def test_every_prefix_holds_the_classes_in_their_shares(
    labels: np.ndarray, seed: int, purpose: Purpose, share: float
) -> None:
    order = shuffled_rows(labels, seed, purpose)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    prefix = labels[order[: round(share * len(labels))]]
    for label in np.unique(labels):
        expected = np.mean(labels == label) * len(prefix)
        assert abs(np.sum(prefix == label) - expected) < len(np.unique(labels))


@properties
@given(LABELS, SEEDS, st.integers(1, 300), st.integers(1, 300))
def test_a_larger_draw_holds_the_smaller_one(labels: np.ndarray, seed: int, one: int, other: int) -> None:
    small, large = (drawn(labels, count, seed) for count in sorted((one, other)))
    assert set(small) <= set(large) and (np.diff(large) > 0).all()
    assert len(large) == min(max(one, other), len(labels))


def test_sorted_labels_are_drawn_from_both_classes() -> None:
    examples = Texts(texts=tuple((str(i),) for i in range(1000)), labels=np.repeat([0, 1], [800, 200]))
    random, first = (Evaluation(limit=100, order=order).rows(examples) for order in ("random", "file"))
    assert random.labels.sum() == 20 and first.labels.sum() == 0
    assert Evaluation(limit=100, seed=1).rows(examples).fingerprint != random.fingerprint
    assert Evaluation(limit=1000).rows(examples) is examples


def test_the_same_rows_on_every_machine() -> None:
    assert drawn(np.arange(40) % 2, 6, seed=0).tolist() == [2, 3, 11, 13, 20, 32]
    assert np.flatnonzero(held_out(np.arange(400) % 2, 0.5, seed=0))[:6].tolist() == [4, 5, 7, 10, 11, 12]


@pytest.mark.parametrize(
    "rows, share, count",
    [
        (400, 0.5, 200),
        (2 * FEWEST, 0.5, FEWEST),
        (2 * FEWEST - 1, 0.5, 0),
        (1000, 0.0, 0),
        (1000, 0.25, 250),
        (1000, 0.95, 0),
    ],
)
def test_held_out_rows_are_enough_on_both_sides_or_none(rows: int, share: float, count: int) -> None:
    labels = np.arange(rows) % 2
    mask = Evaluation(holdout=share).held_out(labels)
    assert mask.sum() == count and labels[mask].sum() == count // 2
    scores = Evaluation(holdout=share).held_out(np.linspace(0, 5, rows, dtype=np.float32))
    assert scores.sum() == count


def test_rows_of_one_cluster_are_held_out_together() -> None:
    clusters = np.repeat(np.arange(60), np.arange(60) % 9 + 1)
    mask = Evaluation().held_out(np.zeros(len(clusters), np.int64), clusters)
    assert not np.isin(clusters[mask], clusters[~mask]).any()
    assert 0 <= mask.sum() - len(mask) / 2 < 9
    assert not Evaluation().held_out(np.zeros(400, np.int64), np.zeros(400, np.int64)).any()


def test_the_draw_and_the_split_know_nothing_of_each_other() -> None:
    labels = np.zeros(10_000, np.int64)
    draw, hold = (shuffled_rows(labels, 0, purpose)[:5000] for purpose in (Purpose.DRAW, Purpose.HOLD_OUT))
    assert len(np.intersect1d(draw, hold)) == pytest.approx(2500, abs=100)  # four standard errors
