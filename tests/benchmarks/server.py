"""How many trials a minute one tracking server takes: ``python tests/benchmarks/server.py <finished trial>``.

Clients replay the logging of a real trial, as a sweep's workers do it, without pause, against ``mlflow
server`` with one worker on a throw-away Postgres. They all share this machine, so a server of its own takes
more.
"""

import argparse
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import sweeps
from quantlab.sweeping.tracked_trial import trial_outcome
from quantlab.tracking.mlflow import MLflow
from quantlab.tracking.tracker import RunEntry
from quantlab.trial.result import RESULT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trial", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="quantlab-") as name,
        sweeps.tracking_uri(True, Path(name)) as uri,
    ):
        replayed(uri, arguments.trial, 1, True)  # the experiment is made, and everything is loaded
        for files in (True, False):
            for count in arguments.clients:
                report(uri, arguments.trial, count, arguments.seconds, files)


def report(uri: str, trial: Path, clients: int, seconds: float, files: bool) -> None:
    """One line: how much ``clients`` got through together."""
    with ProcessPoolExecutor(clients) as pool:
        list(
            pool.map(replayed, [uri] * clients, [trial] * clients, [0.1] * clients, [files] * clients)
        )  # warm
        begun = time.perf_counter()
        numbers = list(
            pool.map(replayed, [uri] * clients, [trial] * clients, [seconds] * clients, [files] * clients)
        )
        took = time.perf_counter() - begun
    what = "with its 6 files" if files else "numbers only"
    total = sum(numbers)
    print(
        f"{clients} clients, {what}: {60 * total / took:.0f} trials a minute, "
        f"{1000 * took / total:.0f} ms a trial",
        flush=True,
    )


def replayed(uri: str, trial: Path, seconds: float, files: bool) -> int:
    """Logs the trial under new names for some seconds; returns how often."""
    tracker, count = MLflow(uri=uri, experiment="load"), 0
    with copied(trial) as folder:
        found = trial_outcome(folder, json.loads((folder / RESULT).read_text()))
        found = found if files else replace(found, files=())
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            name = uuid.uuid4().hex
            entry = RunEntry(
                identity=name, name=name, params={"method.k": "4"}, tags={"sweep": "load"}, parent="parent"
            )
            problem = tracker.replay(entry, folder, found)
            if problem:
                raise SystemExit(problem)
            count += 1
    return count


@contextmanager
def copied(trial: Path) -> Iterator[Path]:
    """The trial's files in a folder that may be written to."""
    with tempfile.TemporaryDirectory(prefix="quantlab-") as name:
        shutil.copytree(trial, name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tracking", ".*"))
        yield Path(name)


if __name__ == "__main__":
    main()
