"""Sweeps through the command line on a tiny model: one tree in MLflow, resumed after anything, whoever runs
it."""

import json
import math
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import MakeModel
from processes import Going, Python
from safetensors.torch import load_file, save_file

from quantlab.tracking.record import FOLDER

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Bench:
    """A working folder with a tiny model, its data, and a database."""

    cwd: Path
    overrides: tuple[str, ...]
    python: Python

    def start(self, *more: str) -> Going:
        return self.python.start("-m", "quantlab.run", "-m", *self.overrides, *more, cwd=self.cwd)

    def sweep(self, *more: str, status: int = 0) -> str:
        done = self.python.run("-m", "quantlab.run", "-m", *self.overrides, *more, cwd=self.cwd)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def results(self) -> list[Path]:
        return sorted(self.cwd.glob("multirun/trials/*/result.json"))

    @property
    def table(self) -> pd.DataFrame:
        (path,) = self.cwd.glob("multirun/sweeps/*/results.csv")
        return pd.read_csv(path, keep_default_na=False)

    def tree(self) -> tuple[list, list]:
        """The parents, and their children, in MLflow."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{self.cwd}/mlflow.db")
        runs = list(client.search_runs([client.get_experiment_by_name("quantlab").experiment_id]))
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {
            run.info.run_id for run in parents
        }
        return parents, children


@pytest.fixture
def new_bench(tiny_bert: Path, tiny_glue: Path, python: Python, tmp_path: Path) -> Bench:
    return Bench(
        tmp_path,
        (
            "model=hf",
            f"model.path={tiny_bert}",
            "task=qnli",
            f"task.data_dir={tiny_glue}",
            "task.max_length=32",
            "evaluation.limit=32",
            "calibration.samples=4",
            "profile=off",
        ),
        python,
    )


@pytest.fixture
def bench(new_bench: Bench, mlflow_tables: Path) -> Bench:
    """The same with MLflow's tables, which take seconds to make."""
    shutil.copy(mlflow_tables, new_bench.cwd / "mlflow.db")
    return new_bench


PEG = ("method=peg", "method.k=2,4", "bits.symmetric=true,false")
TWO = ("method=peg", "method.k=2,4")


def statuses(runs: Sequence) -> list[str]:
    return [run.info.status for run in runs]


def test_a_sweep_is_one_tree_and_its_second_start_runs_nothing(new_bench: Bench) -> None:
    said = new_bench.sweep(*TWO)
    assert "2 trials, 0 reused, 2 to run" in said and "2 done, 0 reused, 0 failed" in said
    (parent,), children = new_bench.tree()
    assert statuses([parent, *children]) == ["FINISHED"] * 3
    assert {run.info.run_name for run in children} == {"k=2", "k=4"}
    for run in children:
        assert (run.data.params["method"], run.data.params["model"]) == ("peg", "hf")
        assert {"method.k", "bits.symmetric", "evaluation.limit", "task"} <= set(run.data.params)
        assert "accuracy_drop_points" in run.data.metrics and run.data.tags["mlflow.note.content"]
    assert {run.data.tags["trial"] for run in children} == {"1 of 2", "2 of 2"}
    (tag,) = {run.data.tags["sweep"] for run in children}
    assert parent.data.tags["sweep_parent"] == tag and "&viewStateShareKey=" in said
    assert parent.data.metrics["trials_done"] == 2 and parent.data.tags["best"]
    files = {path.name for path in new_bench.cwd.glob("mlartifacts/**/*") if path.is_file()}
    assert {"results.csv", "results.md", "results.tex", "config.yaml", "result.json"} <= files
    assert set(new_bench.table["status"]) == {"done"} and len(new_bench.table) == 2

    said = new_bench.sweep(*TWO)
    assert "2 trials, 2 reused, 0 to run" in said
    (again,), same = new_bench.tree()
    assert again.info.run_id == parent.info.run_id and again.data.metrics["trials_reused"] == 2
    assert {run.info.run_id for run in same} == {run.info.run_id for run in children}
    assert set(new_bench.table["status"]) == {"reused"}

    said = new_bench.sweep(*TWO, "sweep.fresh=true")
    assert "2 trials, 0 reused, 2 to run" in said
    parents, everything = new_bench.tree()
    assert len(parents) == 2 and len(everything) == 4
    assert len({run.data.tags["sweep"] for run in everything}) == 2  # each filter lists its own children only


def test_a_larger_sweep_reuses_the_smaller_ones_trials_under_its_own_parent(bench: Bench) -> None:
    bench.sweep("method=peg", "method.k=2")
    said = bench.sweep(*TWO)
    assert "2 trials, 1 reused, 1 to run" in said
    parents, children = bench.tree()
    assert len(parents) == 2
    assert sorted(run.info.run_name for run in children) == ["k=2", "k=4", "trial"]
    assert statuses(children) == ["FINISHED"] * 3


ON_TWO_THREADS = "import torch; torch.set_num_threads(2); from quantlab.run import main; main()"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_launchers_give_the_same_results(bench: Bench, launcher: str) -> None:
    """On one thread a trial, as what ran without a launcher on two."""
    if find_spec(launcher) is None:  # imported here, ray would replace functions of inspect for all tests
        pytest.skip("needs ray: pip install -e '.[ray]'")
    done = bench.python.run("-c", ON_TWO_THREADS, "-m", *bench.overrides, *PEG, cwd=bench.cwd)
    assert done.returncode == 0, done.stderr
    alone = {path.parent.name: json.loads(path.read_text())["metrics"] for path in bench.results}
    bench.sweep(*PEG, f"launcher={launcher}", "sweep.fresh=true")
    together = {path.parent.name: json.loads(path.read_text())["metrics"] for path in bench.results}
    assert len(alone) == 4 and alone.keys() == together.keys()
    for key, metrics in alone.items():
        untimed = {name: value for name, value in metrics.items() if not name.endswith("_s")}
        assert untimed == {name: together[key][name] for name in untimed}
    parents, children = bench.tree()
    assert statuses([*parents, *children]) == ["FINISHED"] * 10


def test_a_trial_that_fails_does_not_stop_the_others(
    bench: Bench, make_model: MakeModel, tmp_path: Path
) -> None:
    model, broken = make_model(seed=1), tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["classifier.bias"][0] = math.nan  # which shows when the weights are read, not before the sweep
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    other = replace(
        bench, overrides=tuple(item for item in bench.overrides if not item.startswith("model.path="))
    )
    rows = f"model.path={broken},{model}"
    said = other.sweep(rows, status=1)
    assert "1 of 2 trials failed" in said and "classifier.bias holds NaN or infinity" in said
    assert sorted(other.table["status"]) == ["done", "failed"]
    (parent,), children = other.tree()
    assert sorted(statuses(children)) == ["FAILED", "FINISHED"]
    assert parent.data.metrics["trials_failed"] == 1
    said = other.sweep(rows, status=1)
    assert "2 trials, 1 reused, 1 to run" in said  # what failed is tried again, as the same run
    assert len(other.tree()[1]) == 2


def test_a_sweep_that_is_killed_again_and_again_ends_whole(bench: Bench) -> None:
    axis = f"calibration.samples={','.join(map(str, range(1, 5)))}"
    for finished in (1, 2):
        going = bench.start(axis)
        going.says(f"[{finished}/4]")
        going.kill()
        assert going.wait() == -signal.SIGKILL
    bench.sweep(axis)
    (parent,), children = bench.tree()
    assert len(bench.results) == 4 == len(children)
    assert set(statuses([parent, *children])) == {"FINISHED"}
    assert [run.data.metrics["accuracy"] for run in children] and len(bench.table) == 4


@pytest.mark.parametrize(
    "launcher",
    [
        (),
        pytest.param(("launcher=joblib", "hydra.launcher.n_jobs=2"), marks=pytest.mark.slow),
    ],
    ids=["no launcher", "joblib"],
)
def test_a_terminated_sweep_is_killed(bench: Bench, launcher: tuple[str, ...]) -> None:
    axis = f"calibration.samples={','.join(map(str, range(1, 30)))}"
    going = bench.start(axis, *launcher)
    going.says("[1/29]")
    going.kill(signal.SIGTERM)
    assert going.wait() != 0
    (parent,), children = bench.tree()
    assert parent.info.status == "KILLED" and "RUNNING" not in statuses(children)


def test_two_starts_of_one_sweep_do_not_mix(bench: Bench) -> None:
    from filelock import FileLock

    bench.sweep("method=peg", "method.k=2")
    (folder,) = bench.cwd.glob("multirun/sweeps/*")
    with FileLock(folder / ".lock"):
        assert "is being run by another process" in bench.sweep("method=peg", "method.k=2", status=1)


def test_ones_own_sweep(bench: Bench) -> None:
    (bench.cwd / "mine" / "sweeps").mkdir(parents=True)
    sweep = {
        "name": "mine",
        "question": "Which K?",
        "trials": [
            {"name": "FP32", "over": {"method": "fp32"}},
            {"over": {"method": "peg", "method.k": [2, 4]}},
        ],
        "views": [{"_target_": "quantlab.sweeping.views.Curve", "x": "method.k"}],
    }
    path = bench.cwd / "mine" / "sweeps" / "mine.yaml"
    path.write_text(f"# @package _global_\n{yaml.safe_dump({'sweep': sweep})}")
    bench.sweep("+sweeps=mine", "--config-dir", str(bench.cwd / "mine"))
    (folder,) = bench.cwd.glob("multirun/sweeps/mine-*")
    assert (folder / "curve_method.k.png").stat().st_size > 1000
    assert [run.info.run_name for run in bench.tree()[0]] == ["mine"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+sweeps=peg_kk"], "there is no sweeps=peg_kk (did you mean 'peg_k'?)"),
        (["method=peg", "method.kk=2,3"], "there is no setting method.kk (did you mean 'method.k'?)"),
        (["method=peg", "method.k=2,100000"], "trial 'k=100000'"),
        (["placement.sites=[nowhere],[*.ffn.in]"], "trial"),
        (
            ["method.k=2,3"],
            "there is no setting method.k; method=grouped and method=peg and method=rptq have it",
        ),
        (["method=peg", "method.k=2,3", "model.path=/nowhere"], "'/nowhere' is no folder"),
    ],
    ids=str,
)
def test_what_cannot_run_is_said_before_anything_runs(
    new_bench: Bench, overrides: list[str], message: str
) -> None:
    said = new_bench.sweep(*overrides, status=1)
    assert message in said and "Traceback" not in said
    assert not new_bench.results and not (new_bench.cwd / "mlflow.db").exists()


def test_other_code_is_another_trial(bench: Bench, tmp_path: Path) -> None:
    """A method of one's own is part of the key, though it lies outside quantlab."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "own.yaml").write_text("_target_: own.Own\n")
    code = "from dataclasses import dataclass\nfrom quantlab.methods.uniform import Uniform\n\n\n"
    own = tmp_path / "own.py"
    own.write_text(f"{code}@dataclass(frozen=True, kw_only=True)\nclass Own(Uniform):\n    pass\n")
    arguments = ("method=own", "bits.symmetric=true", "--config-dir", str(tmp_path / "conf"))
    assert "0 reused, 1 to run" in bench.sweep(*arguments)
    assert "1 reused, 0 to run" in bench.sweep(*arguments)
    own.write_text(f"{own.read_text()}\n# changed\n")
    assert "0 reused, 1 to run" in bench.sweep(*arguments)


def test_every_run_of_a_sweep_arrives(bench: Bench) -> None:
    bench.sweep("method=peg", "method.k=2,4")
    records = [json.loads(path.read_text()) for path in bench.cwd.glob(f"multirun/**/{FOLDER}/*.json")]
    assert len(records) == 3 and all(record["sent"] for record in records)
