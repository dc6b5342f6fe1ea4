"""A finished trial as a tracker shows it."""

from pathlib import Path

from quantlab.sweeping.tracked_trial import NOTE, trial_outcome

SUMMARY = {
    "metrics": {
        "accuracy": 0.8765,
        "accuracy_fp32": 0.881,
        "accuracy_drop": 0.0045,
        "accuracy_drop_ci95_low": -0.002,
        "accuracy_drop_ci95_high": None,
        "size_bytes": 22807796.0,
    },
    "tags": {"engine": "integer", "key": "k", "version.torch": "2.13", "cpu_vendor": "x"},
    "alarms": [{"name": "too_few_examples", "message": "it takes more"}],
}


def test_drops_are_in_points_and_alarms_stand_in_the_note(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    outcome = trial_outcome(tmp_path, SUMMARY)
    assert outcome.metrics["accuracy_drop_points"] == 0.45 and outcome.metrics["size_mb"] == 22.808
    assert "accuracy_drop_ci95_high_points" not in outcome.metrics
    assert outcome.tags.keys() == {"engine", "key", NOTE} and outcome.files == ("result.json",)
    assert outcome.tags[NOTE].startswith("accuracy 0.8765, FP32 0.8810")
    assert "- **too_few_examples**: it takes more" in outcome.tags[NOTE]
