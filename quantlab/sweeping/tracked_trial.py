"""A finished trial as a tracker shows it: for people who read a table of runs.

``result.json``, one of the run's files, keeps every number and every tag.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantlab.sweeping.summary import answer_line
from quantlab.tracking.tracker import RunOutcome
from quantlab.trial.result import Metric

NOTE = "mlflow.note.content"  # the tag that MLflow's pages show as a run's description, in Markdown
# Tags of the machine and its libraries, which decide numbers and which nobody reads in a table.
PROVENANCE = (
    "version.",
    "env.",
    "cpu_",
    "instructions",
    "kernels",
    "products",
    "processors",
    "threads",
    "omp_wait_policy",
    "matmul_precision",
    "tf32",
    "profile_threads",
    "load_average",
    "label_order",
    "timed_runs",
)


def trial_outcome(folder: Path, summary: Mapping[str, Any]) -> RunOutcome:
    """What a tracker records of a finished trial; ``summary`` is the content of its ``result.json``."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    tags = {name: value for name, value in summary["tags"].items() if not name.startswith(PROVENANCE)}
    return RunOutcome(
        metrics=summary["metrics"] | readable(summary["metrics"]),
        tags=tags | {NOTE: note(summary)},
        files=tuple(files),
    )


def readable(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Numbers again in units that a table shows with enough digits: drops in points, the size in MB."""
    points: dict[str, Metric] = {
        f"{name}_points": round(100 * value, 4)
        for name, value in metrics.items()
        if "_drop" in name and isinstance(value, float) and math.isfinite(value)
    }
    size = metrics.get("size_bytes")
    return points | ({"size_mb": round(size / 1e6, 3)} if isinstance(size, float) else {})


def note(summary: Mapping[str, Any]) -> str:
    """The answer and the alarms with their messages, in Markdown."""
    alarms = [f"- **{alarm['name']}**: {alarm['message']}" for alarm in summary["alarms"]]
    return "\n".join([answer_line(summary["metrics"]), "", *(alarms or ["No alarm."])])
