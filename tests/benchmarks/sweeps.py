"""What sweeps survive, and what they gain from more processes: ``python tests/benchmarks/sweeps.py
<measurement>``.

``processes``  4 processes x 25 tiny trials at once on one fresh SQLite file; ``--postgres``: on one fresh
server ``kills``      a sweep of 20 tiny trials, killed at 10 random moments and started again each time
``workers``    8 trials of the embedded default with 1 worker and with 2, each worker with one thread

Tiny trials are real ones: a 2-layer BERT with random weights on made-up pairs, through the command line.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import family_config, qnli_rows, tokenizer
from mlflow import MlflowClient
from mlflow.entities import Run
from servers import mlflow_server, postgres
from transformers import AutoModelForSequenceClassification

PROCESSES, TRIALS = 4, 25
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurement", choices=["processes", "kills", "workers"])
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory(prefix="quantlab-") as name:
            folder = Path(name)
            if arguments.measurement == "processes":
                with tracking_uri(arguments.postgres, folder) as uri:
                    processes(tiny(folder), uri, folder)
            elif arguments.measurement == "kills":
                kills(tiny(folder), folder)
            else:
                workers(folder)


@contextmanager
def tracking_uri(server: bool, folder: Path) -> Iterator[str]:
    """A tracking store that nobody has used yet."""
    if not server:
        yield f"sqlite:///{folder}/mlflow.db"
        return
    cluster = postgres.__wrapped__()  # the fixture's generator
    database = next(cluster).new_database()
    try:
        with mlflow_server(database, folder) as running:
            yield running.uri
    finally:
        next(cluster, None)


def tiny(folder: Path) -> list[str]:
    """The overrides of trials that take a second."""
    names = {0: "entailment", 1: "not_entailment"}
    config = family_config("bert", 2, id2label=names, label2id={name: index for index, name in names.items()})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split in ("train", "validation"):
        qnli_rows(64).to_parquet(folder / "data" / f"{split}.parquet")
    return [
        "model=hf",
        f"model.path={folder}/model",
        "task=qnli",
        f"task.data_dir={folder}/data",
        "task.max_length=32",
        "profile=off",
    ]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A sweep in a folder of its own, with one thread."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "quantlab.run", "-m", *overrides]
    return subprocess.Popen(
        command, cwd=folder, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)


def runs(uri: str, experiment: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    return list(
        client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=5000)
    )


def processes(model: list[str], uri: str, folder: Path) -> None:
    """Each process runs a sweep of its own into one new experiment."""
    tracking = ["tracking=server", f"tracking.uri={uri}", "tracking.experiment=new"]
    axis = f"calibration.samples={','.join(map(str, range(1, TRIALS + 1)))}"
    begun = time.perf_counter()
    for process in [
        start(folder / f"p{i}", *model, *tracking, axis, f"sweep.name=p{i}") for i in range(PROCESSES)
    ]:
        end(process)
    seconds = time.perf_counter() - begun
    found = runs(uri, "new")
    parents = {run.info.run_id: run for run in found if "sweep_parent" in run.data.tags}
    children = [run for run in found if "sweep" in run.data.tags]
    placed = [parents[run.data.tags["mlflow.parentRunId"]].data.tags["sweep_parent"] for run in children]
    right = sum(place == run.data.tags["sweep"] for place, run in zip(placed, children, strict=True))
    metrics = Counter(len(run.data.metrics) for run in children)
    states = dict(Counter(run.info.status for run in found))
    elsewhere = len(runs(uri, "Default"))
    print(
        f"{len(parents)} parents, {len(children)} of {PROCESSES * TRIALS} children, {right} under the right "
        f"parent, {states}, metrics a child {dict(metrics)}, runs elsewhere {elsewhere}, {seconds:.0f} s",
        flush=True,
    )


def kills(model: list[str], folder: Path) -> None:
    """SIGKILL at random moments, of the start and between trials; the same command again."""
    place, axis = folder / "work", f"calibration.samples={','.join(map(str, range(1, 21)))}"
    chance, moments = random.Random(), []
    for number in range(10):
        before = results(place)
        process = start(place, *model, axis)
        while number % 3 and results(place) == before and process.poll() is None:
            time.sleep(0.01)  # two of three kills wait for a new result first
        time.sleep(chance.uniform(0, 2 if number % 3 else 10))
        process.kill()
        process.communicate()
        moments.append(f"+{results(place) - before}")
    end(start(place, *model, axis))
    found = runs(f"sqlite:///{place}/mlflow.db", "quantlab")
    children = [run for run in found if "sweep" in run.data.tags]
    print(f"new results before each kill: {', '.join(moments)}")
    print(
        f"{results(place)} results, {len(found) - len(children)} parent, "
        f"{len(children)} children with {len({run.info.run_name for run in children})} names, "
        f"{dict(Counter(run.info.status for run in found))}",
        flush=True,
    )


def results(place: Path) -> int:
    """How many trials have finished."""
    return len(list(place.glob("multirun/trials/*/result.json")))


def workers(folder: Path) -> None:
    """Wall time of the same sweep, both ways in turn."""
    axis = [
        "bits.weights=4,6,8,10",
        "bits.symmetric=true,false",
        "evaluation.limit=2000",
        "profile=off",
        "tracking=off",
    ]
    seconds = {}
    for count in (1, 2):
        begun = time.perf_counter()
        end(start(folder / str(count), *axis, "launcher=joblib", f"hydra.launcher.n_jobs={count}"))
        seconds[count] = time.perf_counter() - begun
    print(
        f"1 worker {seconds[1]:.1f} s, 2 workers {seconds[2]:.1f} s: ratio {seconds[1] / seconds[2]:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
