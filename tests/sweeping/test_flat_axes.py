"""A swept setting that does nothing is told; one that does something, if only once, is not."""

import numpy as np
import pytest
from faked import answers, crossed, faked

from quantlab.sweeping.alarms import flat_axes

RIGHT = answers([0.5, 0.6, 0.7, 0.8])
PERCENTILES = [{"calibration.percentile": p} for p in ("99.0", "99.5", "99.9", "99.99")]


def flat(results) -> list[str]:
    return [alarm.message.split("=")[0] for alarm in flat_axes(results)]


def test_the_published_percentiles() -> None:
    """Four percentiles, one answer."""
    (alarm,) = flat_axes(faked(PERCENTILES, RIGHT[[0, 0, 0, 0]]))
    assert alarm.name == "flat_axis"
    assert alarm.message == (
        "calibration.percentile=99.0, calibration.percentile=99.5, calibration.percentile=99.9, "
        "calibration.percentile=99.99: the same answers in all 4 trials that differ only in this"
    )
    assert flat(faked(PERCENTILES, RIGHT)) == []
    assert flat(faked(PERCENTILES, RIGHT[[0, 0, 0, 1]])) == []


def test_the_same_accuracy_of_other_answers_is_not_flat() -> None:
    right = np.stack([RIGHT[0], RIGHT[0][::-1]])
    assert right[0].sum() == right[1].sum()
    assert flat(faked(PERCENTILES[:2], right)) == []


@pytest.mark.parametrize("other, same", [(0.5, True), (0.5 * (1 + 1e-13), True), (0.5 * (1 + 1e-10), False)])
def test_the_same_loss_to_twelve_digits(other: float, same: bool) -> None:
    results = faked(PERCENTILES[:2], RIGHT[:2])
    results.table["loss"] = [0.5, other]
    assert flat(results) == (["calibration.percentile"] if same else [])


def test_an_axis_is_flat_only_if_it_is_so_everywhere() -> None:
    settings = crossed(method_k=["2", "3"], bits=["w8a8", "w4a8"])
    assert flat(faked(settings, RIGHT[[0, 1, 0, 1]])) == ["method.k"]
    assert flat(faked(settings, RIGHT[[0, 0, 1, 1]])) == ["bits"]
    assert flat(faked(settings, RIGHT[[0, 1, 0, 2]])) == []
    assert flat(faked(settings, RIGHT[[0, 0, 0, 0]])) == ["method.k", "bits"]


def test_rows_that_differ_in_more_are_not_compared() -> None:
    settings = [{"method": "peg", "method.k": "2"}, {"method": "uniform"}]
    assert flat(faked(settings, RIGHT[[0, 0]])) == []


def test_fp32_and_failures_say_nothing() -> None:
    settings = [
        {"bits": "w8a8", "k": "2"},
        {"bits": "w8a8", "k": "3"},
        {"bits": "fp32", "k": "2"},
        {"bits": "fp32", "k": "3"},
    ]
    right = np.concatenate([RIGHT[:2], np.ones((2, 400), dtype=bool)])
    assert flat(faked(settings, right, references=[2, 3])) == []
    assert flat(faked(PERCENTILES, RIGHT[[0, 0, 1, 1]], failed=[2, 3])) == ["calibration.percentile"]
    assert flat(faked(PERCENTILES, RIGHT[[0, 0, 0, 0]], failed=[1, 2, 3])) == []


@pytest.mark.parametrize("axis", ["profile.threads", "runtime", "engine"])
def test_what_decides_no_answer_may_be_flat(axis: str) -> None:
    assert flat(faked([{axis: "1"}, {axis: "2"}], RIGHT[[0, 0]])) == []
