"""What MLflow is told: everything, in the right state and once, or an error within seconds."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from servers import Postgres, mlflow_server

from quantlab.conf_dir import CONF
from quantlab.config import RunConfig, run_name
from quantlab.sync import main as sync
from quantlab.tracking import mlflow as tracking
from quantlab.tracking import record as records
from quantlab.tracking.base import Entry, Outcome, Run
from quantlab.tracking.mlflow import MLflow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FOUND = Outcome(metrics={"accuracy": 0.5, "kurtosis": [3.0, None, 9.0]}, tags={"engine": "simulated"}, files=("note",))


@pytest.fixture
def tracker(tmp_path: Path) -> MLflow:
    return MLflow(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")


@pytest.fixture(autouse=True)
def fresh_connections() -> None:
    """A connection is kept for a process; here, every test is one."""
    tracking.connection.cache_clear()


def runs(tracker: MLflow) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracker.uri)
    return list(client.search_runs([client.get_experiment_by_name(tracker.experiment).experiment_id]))


def entry(identity: str = "one", parent: str | None = None) -> Entry:
    return Entry(identity=identity, name="named", params={"method.k": "4"}, tags={"sweep": "s"}, parent=parent)


def finish(run: Run, folder: Path) -> None:
    (folder / "note").write_text("kept")
    run.log(FOUND)


def script(tracker: MLflow, folder: Path, *lines: str) -> list[str]:
    """A process that opens a run and then runs ``lines``."""
    head = [
        "import os, signal, sys, time",
        "from pathlib import Path",
        "from quantlab.tracking.base import Entry, Outcome",
        "from quantlab.tracking.mlflow import MLflow",
        f"tracker = MLflow(uri={tracker.uri!r}, experiment={tracker.experiment!r})",
        f"folder = Path({str(folder)!r})",
    ]
    return [sys.executable, "-c", "\n".join([*head, *lines])]


def quantlab_run(tiny_bert: Path, tiny_glue: Path, tmp_path: Path, *overrides: str) -> list[str]:
    return [
        sys.executable, "-m", "quantlab.run", "model=hf", f"model.path={tiny_bert}", "task=qnli", "task.max_length=32",
        f"task.data_dir={tiny_glue}", "calibration.samples=4", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        "tracking.experiment=tests", f"hydra.run.dir={tmp_path}/out",
        *overrides,
    ]  # fmt: skip


def test_a_trial_arrives_whole(tracker: MLflow, tiny_bert: Path, tiny_glue: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    subprocess.run(quantlab_run(tiny_bert, tiny_glue, tmp_path, "profile=off"), check=True, timeout=120, cwd=tmp_path)
    (run,) = runs(tracker)
    client = MlflowClient(tracking_uri=tracker.uri)
    assert run.info.status == "FINISHED"
    assert {"accuracy", "accuracy_drop_ci95_low", "logits_sqnr_db", "size_bytes", "kurtosis"} <= set(run.data.metrics)
    history = client.get_metric_history(run.info.run_id, "kurtosis")
    assert [point.step for point in history] == [0, 1, 2]  # the embeddings, then the layers
    assert run.data.params["bits.weights"] == "8" and run.data.params["calibration"] == "MinMax"
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


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("what was wrong"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
    ids=repr,
)
def test_a_run_that_does_not_end_well(tracker: MLflow, tmp_path: Path, error: BaseException, status: str) -> None:
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

    begin = tracking.begin
    monkeypatch.setattr(tracking, "begin", ended)
    with pytest.raises(SystemExit), tracker.start(entry(), tmp_path):
        pytest.fail("it never began")
    assert [run.info.status for run in runs(tracker)] == ["KILLED"]


def test_a_terminated_process_leaves_a_killed_run(
    tracker: MLflow, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    arguments = quantlab_run(tiny_bert, tiny_glue, tmp_path, "profile.iterations=100000")
    process = subprocess.Popen(arguments, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(lambda: begun(tmp_path / "mlflow.db") and process.poll() is None)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
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
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection, suppress(sqlite3.OperationalError):
        return bool(connection.execute("select 1 from runs").fetchall())
    return False  # the tables are being made


KILLS_ITSELF = (
    "with tracker.start(Entry(identity='one', name='doomed'), folder):",
    "    os.kill(os.getpid(), signal.SIGKILL)",
)


def test_the_next_start_ends_what_a_kill_left_open(tracker: MLflow, tmp_path: Path) -> None:
    subprocess.run(script(tracker, tmp_path / "doomed", *KILLS_ITSELF), check=False, timeout=60)
    assert [run.info.status for run in runs(tracker)] == ["RUNNING"]
    with tracker.start(entry("two"), tmp_path):
        pass
    found = {run.info.run_name: run for run in runs(tracker)}
    assert found["named"].info.status == "FINISHED"
    assert found["doomed"].info.status == "KILLED" and "without a word" in found["doomed"].data.tags["error"]


def test_the_next_start_sends_what_a_process_had_no_time_for(tracker: MLflow, tmp_path: Path) -> None:
    lines = (
        "import quantlab.tracking.mlflow as tracking",
        "tracking.deliver = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
        "with tracker.start(Entry(identity='one', name='done'), folder) as run:",
        "    run.log(Outcome(metrics={'accuracy': 0.5}, tags={}, files=()))",
    )
    subprocess.run(script(tracker, tmp_path / "done", *lines), check=False, timeout=60)
    assert [run.info.status for run in runs(tracker)] == ["RUNNING"]
    with tracker.start(entry("two"), tmp_path):
        pass
    found = {run.info.run_name: run for run in runs(tracker)}
    assert found["done"].info.status == "FINISHED" and found["done"].data.metrics == {"accuracy": 0.5}


def test_a_run_that_still_goes_on_is_left_alone(tracker: MLflow, tmp_path: Path) -> None:
    with tracker.start(entry("one"), tmp_path / "a"), tracker.start(entry("two"), tmp_path / "b"):
        assert [run.info.status for run in runs(tracker)] == ["RUNNING", "RUNNING"]


def test_a_killed_run_that_starts_again_is_one_run(tracker: MLflow, tmp_path: Path) -> None:
    subprocess.run(script(tracker, tmp_path, *KILLS_ITSELF), check=False, timeout=60)
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


def test_what_is_delivered_twice_is_there_once(tracker: MLflow, tmp_path: Path) -> None:
    with tracker.start(entry(), tmp_path) as run:
        finish(run, tmp_path)
    (path,) = (tmp_path / records.FOLDER).glob("*.json")
    lost = replace(records.read(path), run_id=None, sent=False)  # the server's answers never arrived
    lost.save(tmp_path)
    assert sync([str(tmp_path)]) == 0 and sync([str(tmp_path)]) == 0
    (found,) = runs(tracker)
    client, _ = tracking.connection(tracker.uri, tracker.experiment)
    assert len(client.get_metric_history(found.info.run_id, "accuracy")) == 1
    assert found.info.status == "FINISHED"


def test_a_long_text_says_that_it_was_cut(tracker: MLflow, tmp_path: Path) -> None:
    long = Entry(identity="one", name="doomed", params={"method.keep": "x" * 7000})
    with pytest.raises(ValueError), tracker.start(long, tmp_path):
        raise ValueError("x" * 9000)
    (run,) = runs(tracker)
    for text, limit in ((run.data.tags["error"], 8000), (run.data.params["method.keep"], 6000)):
        assert len(text) == limit and text.endswith("have all of it]")


def test_an_unreachable_server_is_an_error_within_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    with (
        pytest.raises(ConnectionError, match="no MLflow server answers at http://127.0.0.1:9 .*mlflow server"),
        MLflow(uri="http://127.0.0.1:9", experiment="tests").start(entry(), tmp_path),
    ):
        pass
    assert time.monotonic() - start < 5
    assert records.unsent(tmp_path) == [] and not list(records.waiting_dir().glob("*"))  # nothing ran


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


def test_a_trial_costs_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    sent: list[str] = []
    send = requests.Session.send

    def counted(session: requests.Session, request: requests.PreparedRequest, **settings: object) -> requests.Response:
        sent.append(f"{request.method} {request.path_url}")
        return send(session, request, **settings)

    monkeypatch.setattr(requests.Session, "send", counted)
    with mlflow_server(f"sqlite:///{tmp_path}/server.db", tmp_path) as server:
        tracker = MLflow(uri=server.uri, experiment="tests")
        with tracker.start(entry("parent"), tmp_path / "parent") as parent:
            sent.clear()
            with tracker.start(entry("one", parent.id), tmp_path) as run:
                finish(run, tmp_path)
            trial = [request for request in sent if "artifacts" not in request]
    assert 3 <= len(trial) <= 5, sent


FOUR_RUNS = (
    "for number in range(4):",
    "    place = folder / str(number)",
    "    with tracker.start(Entry(identity=str(place), name=place.name, parent='p'), place) as run:",
    "        run.log(Outcome(metrics={'accuracy': 0.5}, tags={}, files=()))",
    "    assert run.problem is None, run.problem",
)


def start_at_once(tracker: MLflow, tmp_path: Path) -> None:
    """Processes that find neither tables nor experiment."""
    lines = [script(tracker, tmp_path / str(number), *FOUR_RUNS) for number in range(4)]
    processes = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found = runs(tracker)
    assert len(found) == 16 and {run.info.status for run in found} == {"FINISHED"}


def test_processes_that_start_at_once_on_a_fresh_file(tracker: MLflow, tmp_path: Path) -> None:
    start_at_once(tracker, tmp_path)


def test_processes_that_start_at_once_on_a_fresh_database(postgres: Postgres, tmp_path: Path) -> None:
    start_at_once(MLflow(uri=postgres.new_database(), experiment="tests"), tmp_path)


def test_a_wrong_password_is_an_error_within_seconds_and_is_not_shown(postgres: Postgres, tmp_path: Path) -> None:
    uri = f"postgresql+psycopg2://quantlab:sesame@127.0.0.1:{postgres.port}/postgres"
    start = time.monotonic()
    with (
        pytest.raises(ConnectionError, match="cannot be opened: .*password authentication failed") as caught,
        MLflow(uri=uri, experiment="tests").start(entry(), tmp_path),
    ):
        pass
    assert time.monotonic() - start < 5 and "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///mlflow.db", "absolute path"),
        ("mlruns", "must start with"),
        ("ftp://host", "must start with"),
        ("postgresql://me:sesame@host/db", r"got 'postgresql://me:\*\*\*@host/db' .did you mean postgresql.psycopg2"),
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


def test_a_record_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x" / records.FOLDER).mkdir(parents=True)
    path = tmp_path / "x" / records.FOLDER / "0.json"
    path.write_text('{"uri": "sqlite:////a.db"}')
    with pytest.raises(ValueError, match="0.json is no record of a run"):
        records.unsent(tmp_path)


def test_a_process_id_that_was_given_out_again_is_another_process() -> None:
    me = records.Owner.me()
    assert not me.gone()
    assert replace(me, started_s=me.started_s - 1).gone()
    assert replace(me, pid=2**22 + 1).gone()  # beyond the largest that Linux gives
    assert not replace(me, host="elsewhere", pid=2**22 + 1).gone()  # nothing is known of it


def test_a_run_is_named_by_what_decides_it() -> None:
    choices = {"method": "peg", "bits": "w8a8", "placement": "all", "calibration": "minmax", "model": "hf"}
    overrides = ["method=peg", "method.k=4", "model.path=/some/path.with.dots", "bits.symmetric=true"]
    assert run_name(choices, overrides) == "peg w8a8 all minmax k=4 symmetric=true"


def test_params_are_flat_and_leave_tracking_out() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        config: RunConfig = instantiate(compose("config", ["tracking=off", "method=peg"]))
    params = config.params()
    assert params["method"] == "Peg" and params["method.k"] == 4
    assert not any(name.startswith(("tracking", "sweep")) for name in params)


def test_a_pointer_that_another_process_removes_meanwhile(tracker: MLflow, tmp_path: Path) -> None:
    records.waiting_dir().mkdir(parents=True, exist_ok=True)
    (records.waiting_dir() / "gone.json").symlink_to(tmp_path / "nowhere")  # listed, and not there when it is read
    assert list(records.orphans(tracker.uri)) == []
    with tracker.start(entry(), tmp_path):
        pass
    assert [run.info.status for run in runs(tracker)] == ["FINISHED"]
