"""Trials that stop answering when their loss is decided, from settings to files."""

from pathlib import Path

import numpy as np
import pytest
from conftest import qnli_rows
from hydra.errors import InstantiationException
from labs import Lab

from quantlab.evaluation.answering import Evaluation
from quantlab.results.answers import read_answers
from quantlab.storage.memo import Memo
from quantlab.sweeping.summary import answer_line
from quantlab.trial.key import trial_key

ROWS = 400
DECIDED = ("evaluation.until=decided", "evaluation.max_drop=30")


@pytest.fixture
def lab(tiny_bert: Path, tmp_path: Path) -> Lab:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 32), ("validation", ROWS)):
        qnli_rows(count, seed=count).to_parquet(data / f"{split}.parquet")
    return Lab(
        (
            "model=hf",
            f"model.path={tiny_bert}",
            "task=qnli",
            f"task.data_dir={data}",
            "task.max_length=32",
            "calibration.samples=8",
            "profile=off",
            "tracking=off",
        )
    )


def test_a_clear_trial_answers_some_rows_as_it_answers_all(lab: Lab, tmp_path: Path) -> None:
    memo = Memo()
    whole, result = lab.trial(memo=memo), lab.trial(*DECIDED, memo=memo)
    answered = int(result.metrics["rows_answered"])  # type: ignore[arg-type]
    assert answered < ROWS / 2 and result.metrics["rows_selected"] == ROWS
    assert result.tags["verdict"] == "keeps" and result.metrics["keeps"] == 1

    result.save(tmp_path / "trial")
    answers = read_answers(tmp_path / "trial")
    assert answers is not None and answers.rows is not None and len(answers.rows) == answered
    assert (np.diff(answers.rows) > 0).all()
    np.testing.assert_array_equal(answers.labels, whole.labels[answers.rows])
    np.testing.assert_array_equal(answers.fp32, whole.reference[answers.rows])
    np.testing.assert_allclose(answers.logits, whole.logits[answers.rows], atol=1e-5)

    metrics = {name: float(result.metrics[name]) for name in whole.metrics if name.startswith("accuracy")}  # type: ignore[arg-type]
    assert metrics["accuracy_fp32"] == whole.metrics["accuracy_fp32"]
    assert metrics["accuracy_fp32"] - metrics["accuracy"] == pytest.approx(metrics["accuracy_drop"])
    assert metrics["accuracy_drop_ci95_low"] < metrics["accuracy_drop"] < metrics["accuracy_drop_ci95_high"]
    assert answer_line(result.metrics).endswith(f", keeps: {answered} of 400 rows answered")


def test_the_same_seed_gives_the_same_answers(lab: Lab) -> None:
    first, again, other = (lab.trial(*DECIDED, f"evaluation.seed={seed}") for seed in (0, 0, 1))
    assert first.rows is not None and again.rows is not None and other.rows is not None
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.logits, again.logits)
    assert list(first.rows) != list(other.rows)
    assert first.tags["key"] == again.tags["key"] != other.tags["key"]


def test_an_undecided_trial_answers_all_rows_as_without_the_question(lab: Lab) -> None:
    memo = Memo()
    whole = lab.trial("evaluation.limit=64", memo=memo)
    result = lab.trial("evaluation.limit=64", "evaluation.until=decided", "evaluation.max_drop=0", memo=memo)
    own = {"rows_answered", "rows_selected", "keeps"}
    timed = {"calibrate_s", "evaluate_s", "profile_s"}
    same = whole.metrics.keys() - timed
    assert result.metrics.keys() == whole.metrics.keys() | own
    assert {name: result.metrics[name] for name in same} == {name: whole.metrics[name] for name in same}


def test_fp32_is_answered_once_and_decides_nothing(lab: Lab) -> None:
    result = lab.trial(*DECIDED, "method=fp32")
    assert "verdict" not in result.tags and "rows_answered" not in result.metrics
    assert len(result.labels) == ROWS


def test_all_rows_have_one_key_whatever_their_order(lab: Lab) -> None:
    memo = Memo()
    keys = [
        trial_key(lab.config(*more), memo)
        for more in ((), ("evaluation.seed=1",), DECIDED, (*DECIDED[:1], "evaluation.max_drop=2"))
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("evaluation.until=decided",), "until=decided needs evaluation.max_drop, in points or % of perpl"),
        (("evaluation.max_drop=1",), "until=all takes no evaluation.max_drop, got 1: set evaluation.until=d"),
        (("evaluation.until=decided", "evaluation.max_drop=-1"), "max_drop must be at least 0, got -1"),
        (
            ("evaluation.until=decided", "evaluation.max_drop=inf"),
            "max_drop must be a finite number",
        ),
        (("evaluation.until=decide",), "until must be one of all, decided; got 'decide' .did you mean"),
    ],
)
def test_settings_that_contradict_each_other(lab: Lab, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InstantiationException, match=message):
        lab.config(*overrides)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("task.metrics=[f1]",), "f1 is no mean over rows"),
        (("evaluation.max_drop=100.5",), "max_drop is in points of accuracy, at most 100; got 100.5"),
        (
            ("runtime=onnxruntime",),
            "runtime=onnxruntime needs the answers to all rows: set evaluation.until=",
        ),
    ],
)
def test_what_cannot_stop_is_refused_before_anything_is_loaded(
    lab: Lab, overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlab.trial.trial.load_material", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        lab.trial(*DECIDED, *overrides)


def test_commands_that_need_all_rows_say_so() -> None:
    with pytest.raises(ValueError, match="a search needs the answers to all rows: set evaluation.until=all"):
        Evaluation(until="decided", max_drop=1).require_all_rows("a search")
    Evaluation().require_all_rows("a search")
