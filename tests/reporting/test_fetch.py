"""Reports of runs that are in MLflow only."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from made import EVIL, ROWS, sweep

from quantlab.report import main
from quantlab.reporting.sources import from_folders
from quantlab.results.store import TrialStore
from quantlab.sweeping.tracked_trial import trial_outcome
from quantlab.tracking.download import _downloaded, fetch
from quantlab.tracking.mlflow import MLflow
from quantlab.tracking.tracker import RunEntry, RunOutcome

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_sweep_and_a_trial_come_back_from_mlflow(
    tmp_path: Path, mlflow_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
    root, uri = tmp_path / "multirun", f"sqlite:///{tmp_path}/mlflow.db"
    folder, tracker, store = sweep(root, ROWS), MLflow(uri=uri, experiment="quantlab"), TrialStore(root)
    with tracker.start(RunEntry(identity="s", name="s", tags={"sweep_parent": "s"}), folder) as parent:
        for path in sorted((root / "trials").iterdir()):
            summary = store.summary(path.name)
            assert summary is not None
            own = RunEntry(identity=f"s/{path.name}", name=f"trial/{path.name}", parent=parent.id)
            with tracker.start(own, path) as child:
                child.log(trial_outcome(path, summary))
        files = tuple(path.name for path in folder.iterdir() if path.is_file())
        parent.log(RunOutcome(metrics={}, tags={}, files=files))
    shutil.rmtree(root)
    assert parent.id is not None and child.id is not None
    study = from_folders([fetch(uri, parent.id, tmp_path / "fetched")])
    assert [trial.name for trial in study.finished] == [row["name"] for row in ROWS]
    assert all(trial.answers is not None for trial in study.trials)
    single = from_folders([fetch(uri, child.id, tmp_path / "fetched")])
    assert [trial.name for trial in single.trials] == [f"trial_{4:064x}"]
    assert main(["0" * 32, "--tracking-uri", uri, "--out", str(tmp_path / "r.html")]) == 1
    assert f"there is no run '{'0' * 32}' in {uri}" in capsys.readouterr().err


@pytest.mark.parametrize("tag", [{"key": "../../.."}, {"key": ".."}, {"key": "f" * 65}, {}])
def test_what_a_store_says_of_a_run_leads_nowhere_else(
    tmp_path: Path, mlflow_tables: Path, tag: dict[str, str]
) -> None:
    """Names and tags are whatever somebody wrote into the store."""
    store, root = tmp_path / "mlflow.db", tmp_path / "deep" / "root"
    shutil.copy(mlflow_tables, store)
    tracker, parent_tag = MLflow(uri=str(store), experiment="quantlab"), {"sweep_parent": "s"} if tag else {}
    hostile = "../../../" + EVIL + "[/x]\n" + "long " * 100
    (tmp_path / "note").write_text("kept")
    with tracker.start(RunEntry(identity="s", name=hostile, tags=parent_tag), tmp_path) as parent:
        parent.log(RunOutcome(metrics={}, tags={}, files=("note",)))
        identity = f"s/{tag.get('key', '')}"
        with tracker.start(
            RunEntry(identity=identity, name="c", parent=parent.id, tags=tag), tmp_path
        ) as child:
            child.log(RunOutcome(metrics={}, tags={}, files=("note",)))
    before = {path for path in tmp_path.rglob("*") if root not in path.parents}
    assert parent.id is not None
    if tag:
        with pytest.raises(ValueError, match="has the key '.*', which is no trial's"):
            fetch(str(store), parent.id, root)
    else:
        folder = fetch(str(store), parent.id, root)
        assert folder.parent == root / parent.id and (folder / "note").read_text() == "kept"
    after = {path for path in tmp_path.rglob("*") if root not in path.parents}
    assert after - before <= {root, root.parent}


@pytest.mark.parametrize("path", ["../evil", "/evil", "a/../../evil"])
def test_a_file_of_a_run_is_a_name_in_its_folder(tmp_path: Path, path: str) -> None:
    class Hostile:
        def list_artifacts(self, _: str) -> list[SimpleNamespace]:
            return [SimpleNamespace(path=path, is_dir=False)]

    run = SimpleNamespace(info=SimpleNamespace(run_id="r", run_name="n", status="FINISHED"))
    with pytest.raises(ValueError, match="no name of a file in its folder"):
        _downloaded(Hostile(), run, tmp_path)  # type: ignore[arg-type]
