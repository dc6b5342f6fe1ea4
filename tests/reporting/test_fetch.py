"""Reports of runs that are in MLflow only."""

import shutil
from pathlib import Path

import pytest
from made import ROWS, sweep

from quantlab.report import main
from quantlab.reporting.sources import from_folders
from quantlab.sweeping.store import Store, outcome
from quantlab.tracking.base import Entry, Outcome
from quantlab.tracking.download import fetch
from quantlab.tracking.mlflow import MLflow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_sweep_and_a_trial_come_back_from_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, uri = tmp_path / "multirun", f"sqlite:///{tmp_path}/mlflow.db"
    folder, tracker, store = sweep(root, ROWS), MLflow(uri=uri, experiment="quantlab"), Store(root)
    with tracker.start(Entry(identity="s", name="s", tags={"sweep_parent": "s"}), folder) as parent:
        for path in sorted((root / "trials").iterdir()):
            summary = store.summary(path.name)
            assert summary is not None
            own = Entry(identity=f"s/{path.name}", name=f"trial/{path.name}", parent=parent.id)
            with tracker.start(own, path) as child:
                child.log(outcome(path, summary))
        files = tuple(path.name for path in folder.iterdir() if path.is_file())
        parent.log(Outcome(metrics={}, tags={}, files=files))
    shutil.rmtree(root)
    assert parent.id is not None and child.id is not None
    study = from_folders([fetch(uri, parent.id, tmp_path / "fetched")])
    assert [trial.name for trial in study.finished] == [row["name"] for row in ROWS]
    assert all(trial.answers is not None for trial in study.trials)
    single = from_folders([fetch(uri, child.id, tmp_path / "fetched")])
    assert [trial.name for trial in single.trials] == ["trial_00000004"]
    assert main(["0" * 32, "--tracking-uri", uri, "--out", str(tmp_path / "r.html")]) == 1
    assert f"there is no run '{'0' * 32}' in {uri}" in capsys.readouterr().err
