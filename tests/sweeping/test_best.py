"""The best trial of a sweep: chosen on some rows, measured on others."""

import numpy as np
import pytest
from faked import answers, changed, faked

from quantlab.evaluation.answering import Evaluation
from quantlab.results.answers import SavedAnswers
from quantlab.sweeping.best import Best, best_in_words, best_of

SETTINGS = [{"method.k": str(k)} for k in (1, 2, 16)]


@pytest.mark.parametrize(
    ("accuracies", "sizes", "failed", "references", "expected"),
    [
        ([0.5, 0.9, 0.7], [1e6] * 3, (), (), 1),
        ([0.5, 0.9, 0.9], [1e6, 2e6, 1e6], (), (), 2),
        ([0.9, 0.9, 0.9], [1e6] * 3, (), (), 0),
        ([1.0, 0.9, 0.7], [4e6, 1e6, 1e6], (), {0}, 1),
        (
            [1.0, 0.9, 0.7],
            [4e6, 1e6, 1e6],
            (),
            (),
            0,
        ),  # FP16 activations on FP32 weights: FP32's answers and size
        ([0.5, 0.9, 0.7], [1e6] * 3, {1}, (), 2),
        ([1.0, 0.9, 0.7], [4e6, 1e6, 1e6], {1, 2}, {0}, 0),
        ([0.5, 0.9, 0.7], [1e6] * 3, {0, 1, 2}, (), None),
    ],
)
def test_best(
    accuracies: list[float], sizes: list[object], failed: set[int], references: set[int], expected: int | None
) -> None:
    results = changed(faked(SETTINGS, answers(accuracies), failed, references=references), size_bytes=sizes)
    found = best_of(results, {}, Evaluation())
    assert (None if found is None else int(found.key, 16)) == expected


DECIDED = {
    "rows_answered": [64.0, 448.0, 500.0],
    "rows_selected": [5463.0] * 3,
    "loss": [0.6, 0.4, 0.5],  # the cross entropy, which all trials have
}


@pytest.mark.parametrize(
    "keeps, sizes, expected",
    [
        ([0.0, 1.0, 1.0], [1e6, 3e6, 2e6], 2),
        ([0.0, 1.0, 1.0], [1e6, 1e6, 1e6], 1),
        ([0.0, 1.0, 1.0], [1e6, 1.005e6, 1e6], 1),  # a group's ranges: no other size
        ([0.0, 0.0, 0.0], [1e6, 1e6, 1e6], None),
    ],
)
def test_of_trials_that_stop_the_smallest_that_keeps(
    keeps: list[object], sizes: list[object], expected: int | None
) -> None:
    results = faked(SETTINGS, answers([0.5, 0.9, 0.7]))
    results = changed(results, keeps=keeps, size_bytes=sizes, **DECIDED)
    evaluation = Evaluation(until="decided", max_drop=1)
    found = best_of(results, {}, evaluation)
    assert (None if found is None else int(found.key, 16)) == expected
    said = best_in_words(found, results, evaluation)
    if expected is None:
        assert said == "no trial keeps within 1 points"
    if expected == 2:
        assert said.endswith("the smallest of 2 trials that keep, decided by 500 of 5,463 rows")


def luckiest(seed: int, evaluation: Evaluation, **more: object) -> tuple[Best, np.ndarray]:
    """The best of 20 trials that are equally good, as only chance tells them apart; with their right
    answers."""
    luck = np.random.default_rng(seed).random((20, 1000)) < 0.8
    labels = np.arange(1000) % 2
    right = np.eye(2)[labels]
    given = {
        f"{index:08x}": SavedAnswers(
            labels=labels, logits=np.where(row[:, None], right, 1 - right), fp32=right
        )
        for index, row in enumerate(luck)
    }
    results = faked([{"calibration.seed": str(seed)} for seed in range(20)], luck)
    found = best_of(results, {**given, **more}, evaluation)  # type: ignore[dict-item]
    assert found is not None
    return found, luck


def test_the_best_is_measured_on_rows_that_did_not_choose_it() -> None:
    values = []
    for seed in range(10):
        found, luck = luckiest(seed, Evaluation())
        mask = Evaluation().held_out(np.arange(1000) % 2)
        index = luck[:, ~mask].mean(axis=1).argmax()
        assert (int(found.key, 16), found.value) == (index, luck[index, mask].mean())
        assert found.loss[1] < 1 - found.value < found.loss[2]
        assert found.rows == "lowest drop among 20 trials on 500 rows, measured on the other 500"
        values.append(found.value)
    assert np.mean(values) == pytest.approx(
        0.8, abs=0.015
    )  # over two standard errors; measured where they were chosen, 0.82


@pytest.mark.parametrize(
    "evaluation, more",
    [
        (Evaluation(holdout=0), {}),
        (Evaluation(holdout=0.05), {}),
        (Evaluation(), {"00000004": None}),
    ],
)
def test_where_the_same_rows_choose_and_measure_it_says_so(evaluation: Evaluation, more: dict) -> None:
    found, luck = luckiest(0, evaluation, **more)
    assert found.value == luck.mean(axis=1).max() > 0.81
    assert (
        found.rows
        == "lowest drop among 20 trials, measured on the 1,000 rows that chose it, which flatters it"
    )
    assert str(found).startswith(f"{int(found.key, 16)}: accuracy 0.8") and str(found).endswith(found.rows)
