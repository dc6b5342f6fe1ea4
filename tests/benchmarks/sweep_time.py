"""Where the time of a sweep goes: ``python tests/benchmarks/sweep_time.py [what follows quantlab run -m]``.

Without more it runs ``+sweeps=paper_table``, the sweep of ``make demo``, in the working folder. Each step's
seconds are its own: what a step has another one do counts there. ``imports`` are those of this process, also
of modules that are imported late; a timing process's are part of ``profile``. ``the rest`` is what no step
covers. Finished trials would be reused: start in an empty folder.
"""

import builtins
import functools
import importlib
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psutil

STEPS = {  # functions and methods, where they are looked up when they are called
    "composing": ["quantlab.sweeping.sweeper.prepare_sweep", "quantlab.sweeping.composing.TrialsLoader."
                  "load_sweep_config", "hydra.utils.instantiate"],
    "loading": ["quantlab.trial.trial.load_material", "quantlab.trial.trial.check_trial"],
    "calibration": ["quantlab.trial.trial.fp32_sketches", "quantlab.trial.trial.trial_plan"],
    "evaluation": ["quantlab.trial.trial.fp32_predictions", "quantlab.trial.material.Material.answer"],
    "diagnosis": ["quantlab.trial.trial.diagnose"],
    "profile": ["quantlab.trial.trial.profile_plan"],
    "scores and alarms": ["quantlab.trial.trial.result_of"],
    "files": ["quantlab.trial.result.TrialResult.save"],
    "MLflow": ["quantlab.tracking.mlflow.attempt", "quantlab.tracking.mlflow.MLflow.table_page"],
    "tables, plots, report": ["quantlab.sweeping.sweeper.write_sweep_files"],
}  # fmt: skip
IMPORTED = ("quantlab.sweeping.sweeper", "quantlab.trial.trial", "quantlab.tracking.mlflow")


class Clock:
    """The seconds of steps that call each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = ["the rest"]
        self.since = time.perf_counter()

    def enter(self, step: str) -> None:
        self._turn()
        self.steps.append(step)

    def leave(self) -> None:
        self._turn()
        self.steps.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self.steps[-1]] += now - self.since
        self.since = now

    def counted(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to a step's."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(step)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run

    def report(self, total: float) -> None:
        """Prints each step's seconds, and its share of ``total``."""
        self._turn()
        print(f"\n{'step':24} {'s':>7} {'%':>4}")
        for step, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            print(f"{step:24} {seconds:7.1f} {100 * seconds / total:4.0f}")
        print(f"{'in all':24} {total:7.1f}")


def main() -> None:
    begun = psutil.Process().create_time()
    clock = Clock()
    clock.seconds["imports"] = time.time() - begun
    builtins.__import__ = clock.counted("imports", builtins.__import__)
    clock.enter("imports")
    for module in IMPORTED:
        importlib.import_module(module)
    clock.leave()
    for step, names in STEPS.items():
        for name in names:
            owner, attribute = _owner(name)
            setattr(owner, attribute, clock.counted(step, getattr(owner, attribute)))
    sys.argv = ["quantlab run", "-m", *(sys.argv[1:] or ["+sweeps=paper_table"])]
    try:
        runpy.run_module("quantlab.run", run_name="__main__")
    finally:
        clock.report(time.time() - begun)


def _owner(name: str) -> tuple[Any, str]:
    """The module or class that holds a function, and the function's name."""
    path, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(path), attribute
    except ModuleNotFoundError:
        module, _, held = path.rpartition(".")
        return getattr(importlib.import_module(module), held), attribute


if __name__ == "__main__":
    main()
