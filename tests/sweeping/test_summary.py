"""A trial in one line."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from quantlab.alarms import Alarm
from quantlab.sweeping.summary import answer_line, print_member, print_summary
from quantlab.sweeping.sweep import Member

METRICS = {
    "accuracy": 0.5,
    "accuracy_fp32": 0.75,
    "accuracy_drop": 0.25,
    "accuracy_drop_ci95_low": -0.1,
    "accuracy_drop_ci95_high": 0.6,
}


def test_an_answer_in_one_line() -> None:
    said = "accuracy 0.5000, FP32 0.7500, drop 0.2500 (95 % interval -0.1000 to 0.6000)"
    assert answer_line(METRICS) == said


def test_an_answer_before_the_end_says_how_many_rows_it_took() -> None:
    metrics = METRICS | {"rows_answered": 64.0, "rows_selected": 5463.0, "keeps": 0.0}
    assert answer_line(metrics).endswith("to 0.6000), loses: 64 of 5,463 rows answered")


def test_a_correlation_that_does_not_exist_can_be_said() -> None:
    metrics = {
        "pearson": None,
        "pearson_fp32": 0.9,
        "pearson_drop": None,
        "pearson_drop_ci95_low": None,
        "pearson_drop_ci95_high": None,
    }
    assert answer_line(metrics) == "pearson none, FP32 0.9000, drop none (95 % interval none to none)"


NAMES = ("[/x", "[red]x[/]", ":cat:", "\\[x]", "method.keep=[embed.*],[head.*]")


@pytest.mark.parametrize("name", NAMES)
def test_what_users_named_is_no_markup(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    alarm = {"name": "a", "message": name}
    summary = {"metrics": METRICS, "tags": {"engine": "fp32"}, "alarms": [alarm], "config": {}}
    print_member(Member(number=1, total=2, name=name, key="k", sweep="s", parent=None, swept=()), summary)
    assert capsys.readouterr().out.startswith(f"[1/2] {name}: accuracy 0.5000")
    print_summary(
        SimpleNamespace(metrics=METRICS, tags=summary["tags"], alarms=[Alarm(**alarm)]), tmp_path / name
    )  # type: ignore[arg-type]
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"alarm a: {name}",
        f"result: {tmp_path / name / 'result.json'}",
    ]


def test_long_names_are_cut_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"metrics": METRICS, "tags": {}, "alarms": []}
    name = "".join(f"{number} " for number in range(1000))
    print_member(Member(number=1, total=2, name=name, key="k", sweep="s", parent=None, swept=()), summary)
    said = capsys.readouterr().out
    assert (
        said.startswith("[1/2] 0 1 2 ") and "…" in said and "998 999 : accuracy" in said and len(said) < 350
    )
