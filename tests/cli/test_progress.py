"""Progress without a terminal: a title once, then a line whenever a minute has passed."""

import pytest

from quantlab.cli.progress import progress


def test_a_long_step_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("quantlab.cli.progress.time.monotonic", lambda: now[0])
    for _ in range(2):
        for seconds in progress([10, 20, 40, 10, 70, 0], "rounding slowly"):
            now[0] += seconds
    minute = ["rounding slowly: 3 of 6 done", "rounding slowly: 5 of 6 done"]
    assert capsys.readouterr().err.splitlines() == ["rounding slowly ...", *minute, *minute]
