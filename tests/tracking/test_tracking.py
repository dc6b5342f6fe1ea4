"""What MLflow is told: everything, in the right state and once, or an error within seconds."""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from faked_mlflow import CERTIFICATE, certificate, faked_mlflow
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from processes import Python
from searches import search_of, space_named
from servers import Postgres, mlflow_server

from quantlab.cli.conf_dir import CONF
from quantlab.report import parse_arguments
from quantlab.searching.study import open_study, storage_url
from quantlab.sweeping.run_config import RunConfig, trial_run_name
from quantlab.sync import main as sync
from quantlab.tracking import mlflow as tracking
from quantlab.tracking import mlflow_steps, mlflow_store, opening
from quantlab.tracking import record as records
from quantlab.tracking.download import fetch
from quantlab.tracking.liveness import Owner
from quantlab.tracking.mlflow import MLflow
from quantlab.tracking.record import FINISHED
from quantlab.tracking.tracker import Run, RunEntry, RunOutcome

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FOUND = RunOutcome(
    metrics={"accuracy": 0.5, "kurtosis": [3.0, None, 9.0]}, tags={"engine": "simulated"}, files=("note",)
)


@pytest.fixture
def tracker(tmp_path: Path, mlflow_tables: Path) -> MLflow:
    shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
    return MLflow(uri=f"{tmp_path}/mlflow.db", experiment="tests")


@pytest.fixture(autouse=True)
def fresh_connections() -> None:
    """A connection is kept for a process; here, every test is one."""
    mlflow_store.connection.cache_clear()


def runs(tracker: MLflow) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracker.uri)
    return list(client.search_runs([client.get_experiment_by_name(tracker.experiment).experiment_id]))


def entry(identity: str = "one", parent: str | None = None) -> RunEntry:
    return RunEntry(
        identity=identity, name="named", params={"method.k": "4"}, tags={"sweep": "s"}, parent=parent
    )


def finish(run: Run, folder: Path) -> None:
    (folder / "note").write_text("kept")
    run.log(FOUND)


def quantlab_run(tiny_bert: Path, tiny_glue: Path, tmp_path: Path, *overrides: str) -> list[str]:
    return [
        "-m",
        "quantlab.run",
        "model=hf",
        f"model.path={tiny_bert}",
        "task=qnli",
        "task.max_length=32",
        f"task.data_dir={tiny_glue}",
        "calibration.samples=4",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        "tracking.experiment=tests",
        f"hydra.run.dir={tmp_path}/out",
        *overrides,
    ]


def test_a_trial_arrives_whole(
    python: Python, tracker: MLflow, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    done = python.run(*quantlab_run(tiny_bert, tiny_glue, tmp_path, "profile=off"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = runs(tracker)
    client = MlflowClient(tracking_uri=tracker.uri)
    assert run.info.status == "FINISHED"
    assert {"accuracy", "accuracy_drop_ci95_low", "logits_sqnr_db", "size_bytes", "kurtosis"} <= set(
        run.data.metrics
    )
    history = client.get_metric_history(run.info.run_id, "kurtosis")
    assert [point.step for point in history] == [0, 1, 2]  # the embeddings, then the layers
    assert run.data.params["bits.weights"] == "8" and run.data.params["calibration"] == "minmax"
    assert run.data.tags["engine"] == "integer" and len(run.data.tags["plan_fingerprint"]) == 64
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {
        "config.yaml",
        "plan.json",
        "answers.parquet",
        "sites.csv",
        "outliers.csv",
        "linears.csv",
        "kurtosis.png",
        "result.json",
    }


def test_a_password_is_in_no_output_and_no_file(
    python: Python, tiny_bert: Path, tiny_glue: Path, tmp_path: Path, own_cache: Path
) -> None:
    with faked_mlflow(tmp_path / "server", login="me:sesame") as server:
        single = quantlab_run(tiny_bert, tiny_glue, tmp_path, "profile=off", f'tracking.uri="{server.uri}"')
        sweep = [*single[:2], "-m", *single[2:], "bits.weights=8,4"]
        done = [python.run(*arguments, cwd=tmp_path) for arguments in (single, sweep)]
        assert {run["info"]["status"] for run in server.runs.values()} == {"FINISHED"} and len(
            server.runs
        ) == 4
    (folder,) = (tmp_path / "multirun" / "sweeps").iterdir()
    done.append(python.run("-m", "quantlab.report", str(folder), cwd=tmp_path))
    for one in done:
        assert one.returncode == 0 and "sesame" not in one.stdout + one.stderr, one.stderr
    files = [path for root in (tmp_path, own_cache) for path in root.rglob("*") if path.is_file()]
    assert {"multirun.yaml", "overrides.yaml", "report.html"} <= {path.name for path in files}
    assert [path for path in files if b"sesame" in path.read_bytes()] == []
    assert f'tracking.uri="{server.uri.replace(":sesame", "")}"' in (folder / "multirun.yaml").read_text()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("what was wrong"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
    ids=repr,
)
def test_a_run_that_does_not_end_well(
    tracker: MLflow, tmp_path: Path, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), tracker.start(entry(), tmp_path):
        raise error
    (run,) = runs(tracker)
    assert (run.info.status, run.info.run_name, run.data.params) == (status, "named", {"method.k": "4"})
    assert type(error).__name__ in run.data.tags["error"]


@pytest.mark.parametrize("created", [False, True])
def test_a_run_that_is_ended_while_mlflow_makes_it(
    tracker: MLflow, tmp_path: Path, created: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(client: object, record: records.Record, folder: Path) -> records.Record:
        if created:
            begin(client, record, folder)  # type: ignore[arg-type]
        monkeypatch.setattr(tracking, "begin", begin)
        raise SystemExit(143)

    begin = mlflow_steps.begin
    monkeypatch.setattr(tracking, "begin", ended)
    with pytest.raises(SystemExit), tracker.start(entry(), tmp_path):
        pytest.fail("it never began")
    assert [run.info.status for run in runs(tracker)] == ["KILLED"]


def test_a_terminated_process_leaves_a_killed_run(
    python: Python, tracker: MLflow, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    arguments = quantlab_run(tiny_bert, tiny_glue, tmp_path, "profile.iterations=100000", "profile.length=32")
    going = python.start(*arguments, cwd=tmp_path)
    wait_for(lambda: begun(tmp_path / "mlflow.db"))
    going.kill(signal.SIGTERM)
    assert going.wait() != 0
    assert [run.info.status for run in runs(tracker)] == ["KILLED"]
    assert not (tmp_path / "out" / "result.json").exists()


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def begun(database: Path) -> bool:
    if not database.exists():
        return False
    with (
        sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection,
        suppress(sqlite3.OperationalError),
    ):
        return bool(connection.execute("select 1 from runs").fetchall())
    return False  # the tables are being made


def killed(tracker: MLflow, identity: str, folder: Path, outcome: RunOutcome | None = None) -> None:
    """Leaves what a process leaves that is killed in the middle of its run, or while it sends what it
    found."""
    record = tracker._record(entry(identity))
    with record.held(folder):
        record, problem = mlflow_steps.attempt(mlflow_steps.begin, record, folder, tracker.uri)
        assert problem is None
        if outcome is not None:
            replace(record.ended(FINISHED), outcome=outcome).save(folder)


def test_the_next_start_ends_what_a_kill_left_open(tracker: MLflow, tmp_path: Path) -> None:
    killed(tracker, "one", tmp_path / "doomed")
    assert [run.info.status for run in runs(tracker)] == ["RUNNING"]
    with tracker.start(entry("two"), tmp_path):
        pass
    found = {run.data.tags["identity"]: run for run in runs(tracker)}
    assert found["two"].info.status == "FINISHED"
    assert found["one"].info.status == "KILLED" and "without a word" in found["one"].data.tags["error"]


def test_the_next_start_sends_what_a_process_had_no_time_for(tracker: MLflow, tmp_path: Path) -> None:
    killed(tracker, "one", tmp_path / "done", RunOutcome(metrics={"accuracy": 0.5}, tags={}, files=()))
    assert [run.info.status for run in runs(tracker)] == ["RUNNING"]
    with tracker.start(entry("two"), tmp_path):
        pass
    found = {run.data.tags["identity"]: run for run in runs(tracker)}
    assert found["one"].info.status == "FINISHED" and found["one"].data.metrics == {"accuracy": 0.5}


def test_a_run_that_still_goes_on_is_left_alone(tracker: MLflow, tmp_path: Path) -> None:
    with tracker.start(entry("one"), tmp_path / "a"), tracker.start(entry("two"), tmp_path / "b"):
        assert [run.info.status for run in runs(tracker)] == ["RUNNING", "RUNNING"]


def test_a_killed_run_that_starts_again_is_one_run(tracker: MLflow, tmp_path: Path) -> None:
    killed(tracker, "one", tmp_path)
    with tracker.start(entry("one"), tmp_path) as run:
        finish(run, tmp_path)
    (found,) = runs(tracker)
    assert found.info.status == "FINISHED" and "error" not in found.data.tags
    assert found.data.metrics == {"accuracy": 0.5, "kurtosis": 9.0} and found.info.run_id == run.id


def test_a_finished_run_is_replayed_once(tracker: MLflow, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("kept")
    with tracker.start(entry("parent"), tmp_path / "parent") as parent:
        for _ in range(2):
            assert tracker.replay(entry("one", parent.id), tmp_path, FOUND) is None
    child, _ = runs(tracker)
    assert len(runs(tracker)) == 2 and child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent.id and child.data.metrics["accuracy"] == 0.5


def tree(tracker: MLflow, tmp_path: Path) -> str:
    """A sweep that starts again: its parent, and two trials that finished before."""
    mlflow_store.connection.cache_clear()
    with tracker.start(RunEntry(identity="s", name="s"), tmp_path / "parent") as parent:
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "note").write_text("kept")
            assert tracker.replay(entry(name, parent.id), tmp_path / name, FOUND) is None
    assert parent.problem is None and parent.id is not None
    return parent.id


def client_of(tracker: MLflow) -> Any:
    return mlflow_store.connection(tracker.uri, tracker.experiment).client


@pytest.mark.parametrize(
    "lost", ["nothing", "the store", "the parent", "a child", "all of them", "the parent for ever"]
)
def test_the_next_start_makes_the_tree_whole_again(
    tracker: MLflow, tmp_path: Path, mlflow_tables: Path, lost: str
) -> None:
    first = tree(tracker, tmp_path)
    if lost == "the store":
        shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
        shutil.rmtree(tmp_path / "mlartifacts")
    for run in runs(tracker) if lost in ("the parent", "a child", "all of them") else ():
        if lost == "all of them" or (lost == "the parent") == (run.info.run_id == first):
            client_of(tracker).delete_run(run.info.run_id)
    if lost == "the parent for ever":
        client_of(tracker).set_tag(first, "identity", "removed")
    parent = tree(tracker, tmp_path)
    whole = [run for run in runs(tracker) if run.data.tags["identity"] != "removed"]
    assert len(whole) == 3 and {run.info.status for run in whole} == {"FINISHED"}
    children = [run for run in whole if run.data.tags.get("mlflow.parentRunId") == parent]
    for child in children:
        assert child.data.metrics["accuracy"] == 0.5
        assert [file.path for file in client_of(tracker).list_artifacts(child.info.run_id)] == ["note"]
        assert len(client_of(tracker).get_metric_history(child.info.run_id, "accuracy")) == 1
    assert len(children) == 2


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(tracker: MLflow, tmp_path: Path) -> None:
    tree(tracker, tmp_path)
    client_of(tracker).delete_experiment("1")
    said = "experiment 'tests' of sqlite.* is deleted: .* restore .*-id 1"
    with pytest.raises(ConnectionError, match=said) as caught:
        tree(tracker, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_that_was_deleted_while_it_went_on_is_sent_later(tracker: MLflow, tmp_path: Path) -> None:
    with tracker.start(entry(), tmp_path) as run:
        finish(run, tmp_path)
        client_of(tracker).delete_run(run.id)
    assert run.problem is not None
    assert sync([str(tmp_path)]) == 0 and [run.info.status for run in runs(tracker)] == ["FINISHED"]


def test_what_is_delivered_twice_is_there_once(tracker: MLflow, tmp_path: Path) -> None:
    with tracker.start(entry(), tmp_path) as run:
        finish(run, tmp_path)
    (path,) = (tmp_path / records.FOLDER).glob("*.json")
    record = records.read_record(path)
    assert record is not None
    lost = replace(record, run_id=None, sent=False)  # the server's answers never arrived
    lost.save(tmp_path)
    assert sync([str(tmp_path)]) == 0 and sync([str(tmp_path)]) == 0
    (found,) = runs(tracker)
    client = mlflow_store.connection(tracker.uri, tracker.experiment).client
    assert len(client.get_metric_history(found.info.run_id, "accuracy")) == 1
    assert found.info.status == "FINISHED"


def test_a_long_text_says_that_it_was_cut(tracker: MLflow, tmp_path: Path) -> None:
    long = RunEntry(identity="one", name="doomed", params={"method.keep": "x" * 7000})
    with pytest.raises(ValueError), tracker.start(long, tmp_path):
        raise ValueError("x" * 9000)
    (run,) = runs(tracker)
    for text, limit in ((run.data.tags["error"], 8000), (run.data.params["method.keep"], 6000)):
        assert len(text) == limit and text.endswith("have all of it]")


ODD = {
    "++bits.weights": 4,
    "recipe@model.recipe": "quick",
    "a[0]": "é",
    "x" * 300: 1,
    **{f"p{n}": n for n in range(120)},
}


def test_whatever_users_named_arrives_and_is_found_again(tracker: MLflow, tmp_path: Path) -> None:
    name, identity = 'layer\'s "K" ' * 30, 'layer\'s "K" 50%_\\'
    outcome = RunOutcome(metrics={"top 1%": 0.5}, tags={"best@": "x"}, files=("removed meanwhile",))
    for _ in range(2):
        with tracker.start(RunEntry(identity=identity, name=name, params=ODD), tmp_path) as run:
            run.log(outcome)
        assert run.problem is None
    (found,) = runs(tracker)
    assert found.info.status == "FINISHED" and found.data.metrics == {"top 1_": 0.5}
    assert len(found.info.run_name) == 250 and found.data.tags["full_name"] == name
    assert found.data.params["bits.weights"] == "4" and len(found.data.params) == len(ODD)
    assert {"recipe_model.recipe", "a_0_"} <= set(found.data.params) and found.data.tags["best_"] == "x"


def test_a_record_that_could_never_be_sent_is_sent(tracker: MLflow, tmp_path: Path) -> None:
    """As one that an unfit name had kept back, its run open."""
    killed(tracker, "one", tmp_path)
    (path,) = (tmp_path / records.FOLDER).glob("*.json")
    record = records.read_record(path)
    assert record is not None
    replace(record.ended(FINISHED), entry=replace(record.entry, params=ODD)).save(tmp_path)
    content = json.loads(path.read_text())
    owner = {"host": content.pop("host"), "pid": 1, "started_s": 0.0}
    path.write_text(json.dumps({**content, "owner": owner}))
    assert sync([str(tmp_path)]) == 0
    assert [(run.info.status, len(run.data.params)) for run in runs(tracker)] == [("FINISHED", len(ODD))]


FOLDERS = (
    "50%41",
    "layer's $HOME é",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("what?", "{x}", "a#b")),
)


@pytest.mark.parametrize("name", FOLDERS)
def test_mlflow_optuna_and_the_report_find_the_same_files_in_any_folder(
    tmp_path: Path, mlflow_tables: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(mlflow_tables, folder / "mlflow.db")
    tracker = MLflow(uri=f"{folder}/mlflow.db", experiment="tests")
    with tracker.start(entry(), folder) as run:
        finish(run, folder)
    assert run.problem is None and run.id is not None
    fetched = fetch(parse_arguments([run.id]).tracking_uri, run.id, tmp_path / "fetched")
    assert (fetched / "note").read_text() == "kept"
    with sqlite3.connect(folder / "mlflow.db") as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (1,)
    for _ in range(2):
        open_study(search_of(), space_named(["0.x"], ("int8", "fp16")), folder, {"n": "1"})
    made = {path.name for path in folder.iterdir()} - {"note", "mlartifacts", "tracking", "opening"}
    assert made == {"mlflow.db", "study.db"} and storage_url(f"{folder}/study.db", tmp_path) == storage_url(
        None, folder
    )
    assert {path.name for path in tmp_path.iterdir()} == {name, "fetched"}


def test_mlflow_is_not_let_into_optunas_database(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    optuna.create_study(storage=f"sqlite:///{file}", study_name="s")
    before = file.read_bytes()
    tracker = MLflow(uri=str(file), experiment="tests")
    said = "is Optuna's database: give MLflow another tracking.uri$"
    with pytest.raises(ConnectionError, match=said), tracker.start(entry(), tmp_path):
        pass
    assert file.read_bytes() == before


def test_optuna_is_not_let_into_mlflows_database(tmp_path: Path, mlflow_tables: Path) -> None:
    before = mlflow_tables.read_bytes()
    with pytest.raises(ValueError, match="is MLflow's database: the study needs another search.storage$"):
        open_study(
            search_of(storage=str(mlflow_tables)), space_named(["0.x"], ("int8", "fp16")), tmp_path, {}
        )
    assert mlflow_tables.read_bytes() == before


@pytest.mark.parametrize(
    "oddity",
    [{}, {"prefix": "/behind/a/path"}, {"health": 404}, {"health": 401}, {"login": "me:se same"}],
    ids=lambda oddity: " ".join(oddity) or "none",
)
def test_whatever_server_mlflow_takes_is_taken(tmp_path: Path, oddity: dict[str, Any]) -> None:
    with faked_mlflow(tmp_path / "server", **oddity) as server:
        tracker = MLflow(uri=server.uri.replace("se same", "se%20same"), experiment="tests")
        with tracker.start(entry(), tmp_path) as run:
            finish(run, tmp_path)
        assert run.problem is None
        (found,) = server.runs.values()
        assert (
            found["info"]["status"] == "FINISHED"
            and (tmp_path / "server" / run.id / "note").read_text() == "kept"
        )
        assert tracker.address.endswith(server.address.removeprefix("http://"))
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"same" not in path.read_bytes(), path


def test_a_server_with_its_own_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate(tmp_path)))
    with faked_mlflow(tmp_path / "server", certificate=tmp_path / CERTIFICATE) as server:
        assert server.uri.startswith("https://")
        with MLflow(uri=server.uri, experiment="tests").start(entry(), tmp_path) as run:
            finish(run, tmp_path)
        assert run.problem is None


def test_a_server_that_wants_a_login_says_so_and_sync_asks_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with faked_mlflow(tmp_path / "server", login="me:sesame") as server:
        for uri in (server.address, server.uri.replace("sesame", "wrong")):
            tracker = MLflow(uri=uri, experiment="tests")
            said = "does not let us in .*set MLFLOW_TRACKING_USERNAME"
            with pytest.raises(ConnectionError, match=said) as caught, tracker.start(entry(), tmp_path):
                pass
            assert "\n" not in str(caught.value) and "wrong" not in str(caught.value)
        killed(MLflow(uri=server.uri, experiment="tests"), "one", tmp_path / "run")
        mlflow_store.connection.cache_clear()
        assert sync([str(tmp_path)]) == 1
        assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in capsys.readouterr().err
        assert sync([str(tmp_path), "--tracking-uri", server.uri]) == 0
        killed(MLflow(uri=server.uri, experiment="tests"), "two", tmp_path / "run")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
        assert sync([str(tmp_path)]) == 0


def test_a_server_that_says_nothing_is_an_error_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(opening.AT_ONCE, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    start = time.monotonic()
    with faked_mlflow(tmp_path, silent_s=3) as server:
        with (
            pytest.raises(ConnectionError, match="no MLflow server answers at .*timed out"),
            MLflow(uri=server.uri, experiment="tests").start(entry(), tmp_path),
        ):
            pass
        assert time.monotonic() - start < 3 and len(server.asked) == 1


def test_an_unreachable_server_is_an_error_within_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    with (
        pytest.raises(
            ConnectionError, match="no MLflow server answers at http://127.0.0.1:9 .*mlflow server"
        ),
        MLflow(uri="http://127.0.0.1:9", experiment="tests").start(entry(), tmp_path),
    ):
        pass
    assert time.monotonic() - start < 5
    assert list(records.unsent(tmp_path)) == [] and not list(records.waiting_dir().glob("*"))  # nothing ran


@pytest.mark.slow
def test_a_server_that_goes_away_stops_nothing_and_gets_everything_later(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with mlflow_server(f"sqlite:///{tmp_path}/server.db", tmp_path / "server") as server:
        tracker = MLflow(uri=server.uri, experiment="tests")
        with tracker.start(entry("parent"), tmp_path / "parent") as parent:
            with tracker.start(entry("before", parent.id), tmp_path / "before") as before:
                finish(before, tmp_path / "before")
            with tracker.start(entry("during", parent.id), tmp_path / "during") as during:
                finish(during, tmp_path / "during")
                server.kill()
            with tracker.start(entry("after", parent.id), tmp_path / "after") as after:
                finish(after, tmp_path / "after")
        assert [bool(run.problem) for run in (parent, before, during, after)] == [True, False, True, True]
        assert sync([str(tmp_path)]) == 1
        server.start()
        assert sync([str(tmp_path)]) == 0 and sync([str(tmp_path)]) == 0
        found = runs(tracker)
        assert len(found) == 4 and {run.info.status for run in found} == {"FINISHED"}
        children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.id]
        assert len(children) == 3 and all(run.data.metrics["accuracy"] == 0.5 for run in children)


def test_a_trial_costs_few_requests(tmp_path: Path) -> None:
    with faked_mlflow(tmp_path / "server") as server:
        tracker = MLflow(uri=server.uri, experiment="tests")
        with tracker.start(entry("parent"), tmp_path / "parent") as parent:
            server.asked.clear()
            with tracker.start(entry("one", parent.id), tmp_path) as run:
                finish(run, tmp_path)
            assert 3 <= len(server.asked) <= 5, server.asked


def test_a_run_that_was_sent_is_confirmed_without_a_search(tmp_path: Path) -> None:
    """A search goes through all runs of the experiment, so that as many would be quadratic."""
    with faked_mlflow(tmp_path / "server") as server:
        tracker = MLflow(uri=server.uri, experiment="tests")
        outcome = RunOutcome(metrics={"accuracy": 0.5}, tags={}, files=())
        for number in range(5):
            tracker.replay(entry(f"{number}", "parent"), tmp_path / str(number), outcome)
        server.asked.clear()
        for number in range(5):
            assert tracker.replay(entry(f"{number}", "parent"), tmp_path / str(number), outcome) is None
        assert len(server.asked) == 5 and not [path for path in server.asked if "search" in path]
        assert len(server.runs) == 5


def start_at_once(tracker: MLflow, tmp_path: Path) -> None:
    """Processes that find neither tables nor experiment."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            with suppress(BaseException):  # whatever it is, it must not come back into pytest
                four_runs(tracker, tmp_path / str(number))
                os._exit(0)
            os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    found = runs(tracker)
    assert len(found) == 16 and {run.info.status for run in found} == {"FINISHED"}


def four_runs(tracker: MLflow, folder: Path) -> None:
    for number in range(4):
        place = folder / str(number)
        with tracker.start(RunEntry(identity=str(place), name=place.name, parent="p"), place) as run:
            run.log(RunOutcome(metrics={"accuracy": 0.5}, tags={}, files=()))
        assert run.problem is None, run.problem


def test_processes_that_start_at_once_on_a_fresh_file(tmp_path: Path) -> None:
    start_at_once(MLflow(uri=f"{tmp_path}/mlflow.db", experiment="tests"), tmp_path)


@pytest.mark.slow
def test_processes_that_start_at_once_on_a_fresh_database(postgres: Postgres, tmp_path: Path) -> None:
    start_at_once(MLflow(uri=postgres.new_database(), experiment="tests"), tmp_path)


@pytest.mark.slow
def test_a_wrong_password_is_an_error_within_seconds_and_is_not_shown(
    postgres: Postgres, tmp_path: Path
) -> None:
    uri = f"postgresql+psycopg2://quantlab:sesame@127.0.0.1:{postgres.port}/postgres"
    start = time.monotonic()
    with (
        pytest.raises(ConnectionError, match="cannot be opened: .*password authentication failed") as caught,
        MLflow(uri=uri, experiment="tests").start(entry(), tmp_path),
    ):
        pass
    assert time.monotonic() - start < 5 and "sesame" not in str(caught.value)


@pytest.mark.slow
def test_postgres_takes_long_names_and_is_one_of_the_two(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of a bare database
    runs_uri, study_uri = postgres.new_database(), postgres.new_database()
    tracker, space = MLflow(uri=runs_uri, experiment="tests"), space_named(["0.x"], ("int8", "fp16"))
    with tracker.start(RunEntry(identity="one", name="n" * 1000), tmp_path / "a") as run:
        finish(run, tmp_path / "a")
    assert run.problem is None and [len(found.info.run_name) for found in runs(tracker)] == [250]
    with pytest.raises(ValueError, match="is MLflow's database"):
        open_study(search_of(storage=runs_uri), space, tmp_path, {})
    open_study(search_of(storage=study_uri), space, tmp_path, {})
    other = MLflow(uri=study_uri, experiment="tests")
    with (
        pytest.raises(ConnectionError, match="is Optuna's database"),
        other.start(entry("two"), tmp_path / "b"),
    ):
        pass
    for path in tmp_path.rglob("*.json"):
        assert postgres.password not in path.read_text()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///mlflow.db", "absolute path"),
        ("mlruns", "must be or start with"),
        ("ftp://host", "must be or start with"),
        (
            "postgresql://me:sesame@host/db",
            r"got 'postgresql://me@host/db' .did you mean postgresql.psycopg2",
        ),
    ],
)
def test_a_uri_that_cannot_be_right(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLflow(uri=uri, experiment="tests")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("nothing of the kind" * 100)
    tracker = MLflow(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")
    with pytest.raises(ConnectionError, match="not a database"), tracker.start(entry(), tmp_path):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 40, b"{", b"[]", b"{}", b'{"uri": "sqlite:////a.db"}', b"\xff"]
)
def test_a_record_that_a_power_failure_emptied_stops_nothing(
    tracker: MLflow, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    killed(tracker, "one", tmp_path / "broken")
    (path,) = (tmp_path / "broken" / records.FOLDER).glob("*.json")
    path.write_bytes(content)
    with tracker.start(entry("two"), tmp_path / "other"):  # of this store, and of any other
        pass
    assert sync([str(tmp_path)]) == 0
    assert f"{path} is no record of a run" in caplog.text
    with tracker.start(entry("one"), tmp_path / "broken"):
        pass
    assert sorted(run.info.status for run in runs(tracker)) == ["FINISHED", "FINISHED"]  # and each once


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\xff"])
def test_a_pointer_that_a_power_failure_emptied_stops_nothing(
    tracker: MLflow, tmp_path: Path, content: bytes
) -> None:
    killed(tracker, "one", tmp_path / "broken")
    (pointer,) = records.waiting_dir().glob("*.json")
    pointer.write_bytes(content)
    with tracker.start(entry("two"), tmp_path / "other"):
        pass
    assert sync([str(tmp_path)]) == 0 and {run.info.status for run in runs(tracker)} == {"FINISHED", "KILLED"}


def test_a_process_is_alive_until_it_ends_whatever_the_clock_says() -> None:
    """Not even a kill leaves its lock behind."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(asdict(Owner.me())).encode())
        signal.pause()
    owner = Owner(**json.loads(os.read(reading, 10_000)))
    assert not owner.gone() and not Owner.me().gone()
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # a zombie holds nothing
    assert owner.gone()
    assert not replace(owner, host="elsewhere").gone()  # nothing is known of it
    assert not replace(
        owner, lock="/nowhere/at/all.lock"
    ).gone()  # a container of the same name has other files
    os.waitpid(child, 0)


def test_a_run_is_named_by_what_decides_it() -> None:
    choices = {"method": "peg", "bits": "w8a8", "placement": "all", "calibration": "minmax", "model": "hf"}
    overrides = ["method=peg", "method.k=4", "model.path=/some/path.with.dots", "bits.symmetric=true"]
    assert trial_run_name(choices, overrides) == "peg w8a8 all minmax k=4 symmetric=true"


def test_params_are_flat_and_leave_tracking_out() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        config: RunConfig = instantiate(compose("config", ["tracking=off", "method=peg"]))
    params = config.params()
    assert (params["method"], params["method.k"]) == ("Peg", "4")
    assert not any(name.startswith(("tracking", "sweep")) for name in params)


def test_a_pointer_that_another_process_removes_meanwhile(tracker: MLflow, tmp_path: Path) -> None:
    records.waiting_dir().mkdir(parents=True, exist_ok=True)
    (records.waiting_dir() / "gone.json").symlink_to(
        tmp_path / "nowhere"
    )  # listed, and not there when it is read
    assert list(records.orphans(tracker.uri)) == []
    with tracker.start(entry(), tmp_path):
        pass
    assert [run.info.status for run in runs(tracker)] == ["FINISHED"]
