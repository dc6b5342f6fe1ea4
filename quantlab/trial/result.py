"""A trial's result, and the files that it is saved in."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from quantlab.alarms import Alarm
from quantlab.calibration.outlier_statistics import plot_by_depth
from quantlab.engines.integer import LinearExecution
from quantlab.plan.plan import QuantPlan
from quantlab.storage.files import settle, write_whole
from quantlab.tasks.scores import Kind

RESULT = "result.json"
REFERENCE = "fp32"  # the tag engine of a trial in which nothing is quantized

Metric = float | list[float | None] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialResult:
    """Everything that a trial computed.

    A metric is a number, or a list with one number for each depth of the network. None stands for an infinite
    or missing number.
    """

    metrics: Mapping[str, Metric]
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    alarms: tuple[Alarm, ...]
    plan: QuantPlan
    linears: Mapping[str, LinearExecution]  # by path; what each Linear ran on
    sites: pd.DataFrame
    outliers: pd.DataFrame  # statistics of every site of the FP32 network
    labels: np.ndarray  # (N,)
    logits: np.ndarray  # (N, C): the answers, logits of classes or what ``kind`` says
    reference: np.ndarray  # the FP32 network's, (N, C)
    kind: Kind = Kind.CLASSES
    clusters: np.ndarray | None = None  # (N,): which rows belong together; None: each stands alone
    rows: np.ndarray | None = None  # (N,) ascending: where they stand among the selected rows; None: all are

    def summary(self) -> dict[str, Any]:
        """Returns what ``result.json`` holds."""
        return {
            "metrics": dict(self.metrics),
            "config": dict(self.config),
            "tags": dict(self.tags),
            "alarms": [{"name": alarm.name, "message": alarm.message} for alarm in self.alarms],
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Writes all files. Returns their paths. ``result.json`` comes last: where it is, all files are."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False))
        plan = self.plan.save(folder)
        self._answers().to_parquet(folder / "answers.parquet", index=False)
        self.sites.to_csv(folder / "sites.csv", index=False)
        self.outliers.to_csv(folder / "outliers.csv", index=False)
        linears = [(path, linear.on, linear.times_fp32) for path, linear in self.linears.items()]
        pd.DataFrame(linears, columns=["linear", "ran_on", "times_fp32"]).to_csv(
            folder / "linears.csv", index=False
        )
        title = f"FP32 activations of {Path(self.tags['checkpoint']).name}"
        plot_by_depth(self.layers(), title, folder / "kurtosis.png")
        tables = ("sites.csv", "outliers.csv", "linears.csv")
        files = [
            *plan,
            *(folder / name for name in ("config.yaml", "answers.parquet", *tables, "kurtosis.png")),
        ]
        settle(files)
        write_whole(folder / RESULT, json.dumps(self.summary(), indent=2, allow_nan=False))
        return [*files, folder / RESULT]

    def layers(self) -> dict[str, list[float]]:
        """Returns the metrics that have one value for each depth, NaN for missing ones."""
        lists = {name: values for name, values in self.metrics.items() if isinstance(values, list)}
        return {
            name: [math.nan if value is None else value for value in values] for name, values in lists.items()
        }

    def _answers(self) -> pd.DataFrame:
        names = self.kind.columns(self.logits.shape[1])
        columns: dict[str, np.ndarray] = {} if self.rows is None else {"row": self.rows}
        columns["label"] = self.labels
        columns |= {} if self.clusters is None else {"cluster": self.clusters}
        columns |= dict(zip(names, self.logits.T, strict=True))
        columns |= {f"fp32_{name}": column for name, column in zip(names, self.reference.T, strict=True)}
        return pd.DataFrame(columns)


def is_reference(tags: Mapping[str, str]) -> bool:
    """Returns True if a trial with these tags ran the unquantized FP32 network."""
    return tags.get("engine") == REFERENCE


def plain_data(component: Any) -> Any:
    """Returns a component as plain data from which Hydra can build it again: ``_target_`` and its fields."""
    if is_dataclass(component) and not isinstance(component, type):
        target = f"{type(component).__module__}.{type(component).__qualname__}"
        return {"_target_": target} | {
            f.name: plain_data(getattr(component, f.name)) for f in fields(component)
        }
    if isinstance(component, tuple | list):
        return [plain_data(item) for item in component]
    return component


def finite_or_none(value: float) -> float | None:
    """Replaces NaN and infinity by None: JSON and databases have no such numbers."""
    return value if math.isfinite(value) else None


def check_writable(folder: Path) -> None:
    """Makes the folder and removes an older result from it. Raises OSError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ".writable", "")
        (folder / ".writable").unlink()
        (folder / RESULT).unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"the trial's folder {folder} cannot be written: {error}") from error
