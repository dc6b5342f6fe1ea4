"""What MLflow is told: everything, in the right state, or an error within seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantlab.config import RunConfig, run_name
from quantlab.tracking.mlflow import MLflow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def tracker(tmp_path: Path) -> MLflow:
    return MLflow(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")


def runs(tracker: MLflow) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracker.uri)
    return list(client.search_runs([client.get_experiment_by_name("tests").experiment_id]))


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
    assert run.data.tags["engine"] == "simulated" and len(run.data.tags["plan_fingerprint"]) == 64
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "plan.json", "answers.parquet", "sites.csv", "kurtosis.png", "result.json"}


@pytest.mark.parametrize("error", [ValueError("what was wrong"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_a_trial_that_does_not_end_well_is_failed(tracker: MLflow, error: BaseException) -> None:
    with pytest.raises(type(error)), tracker.start("doomed", {"bits.weights": 8}):
        raise error
    (run,) = runs(tracker)
    assert run.info.status == "FAILED" and run.info.run_name == "doomed"
    assert type(error).__name__ in run.data.tags["error"]


def test_a_terminated_process_leaves_a_failed_run(
    tracker: MLflow, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    arguments = quantlab_run(tiny_bert, tiny_glue, tmp_path, "profile.iterations=100000")
    process = subprocess.Popen(arguments, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    while not (tmp_path / "mlflow.db").exists() or not _started(tmp_path / "mlflow.db"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert [run.info.status for run in runs(tracker)] == ["FAILED"]
    assert not (tmp_path / "out" / "result.json").exists()


def _started(database: Path) -> bool:
    import sqlite3

    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        try:
            return bool(connection.execute("select 1 from params").fetchall())
        except sqlite3.OperationalError:  # the tables are being made
            return False


def test_a_long_error_says_that_it_was_cut(tracker: MLflow) -> None:
    with pytest.raises(ValueError), tracker.start("doomed", {}):
        raise ValueError("x" * 9000)
    (run,) = runs(tracker)
    assert len(run.data.tags["error"]) == 8000 and run.data.tags["error"].endswith("has all of it]")


def test_an_unreachable_server_is_an_error_within_seconds() -> None:
    start = time.monotonic()
    with (
        pytest.raises(ConnectionError, match="no MLflow server answers at http://127.0.0.1:9 .*mlflow server"),
        MLflow(uri="http://127.0.0.1:9", experiment="tests").start("name", {}),
    ):
        pass
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("uri", "message"),
    [("sqlite:///mlflow.db", "absolute path"), ("mlruns", "must start with"), ("ftp://host", "must start with")],
)
def test_a_uri_that_cannot_be_right(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLflow(uri=uri, experiment="tests")


def test_a_run_is_named_by_what_decides_it() -> None:
    choices = {"method": "peg", "bits": "w8a8", "placement": "all", "calibration": "minmax", "model": "hf"}
    overrides = ["method=peg", "method.k=4", "model.path=/some/path.with.dots", "bits.symmetric=true"]
    assert run_name(choices, overrides) == "peg w8a8 all minmax k=4 symmetric=true"


def test_params_are_flat_and_leave_tracking_out() -> None:
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from quantlab.conf_dir import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        config: RunConfig = instantiate(compose("config", ["tracking=off", "method=peg"]))
    params = config.params()
    assert params["method"] == "Peg" and params["method.k"] == 4
    assert not any(name.startswith("tracking") for name in params)
