"""What finished trials answered, and which of these rows choose among the trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from quantlab.evaluation.significance import Comparison, compare
from quantlab.tasks.metrics import METRICS
from quantlab.tasks.sampling import held_out


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedAnswers:
    """What a trial and FP32 answered: ``labels`` (N,), logits (N, classes)."""

    labels: np.ndarray
    logits: np.ndarray
    fp32: np.ndarray

    @property
    def missing(self) -> int:
        """Examples without a finite answer of the trial's or FP32's."""
        return int((~(np.isfinite(self.logits).all(axis=1) & np.isfinite(self.fp32).all(axis=1))).sum())

    @property
    def right(self) -> np.ndarray | None:
        """1 where the trial's answer is right, else 0, (N,); None for a regression."""
        if self.labels.dtype.kind == "f":
            return None
        right: np.ndarray = (self.logits.argmax(axis=1) == self.labels).astype(float)
        return right

    def where(self, rows: np.ndarray) -> "SavedAnswers":
        """The rows for which the mask, bool (N,), is true."""
        return SavedAnswers(labels=self.labels[rows], logits=self.logits[rows], fp32=self.fp32[rows])

    def value(self, metric: str) -> float:
        """The trial's metric, a fraction; NaN where an answer is missing."""
        return float("nan") if self.missing else METRICS[metric](self.logits, self.labels)

    def against_fp32(self, metric: str, tests: int = 1) -> Comparison:
        """The trial less FP32, one of ``tests`` comparisons that stand beside each other."""
        return compare(metric, self.fp32, self.logits, self.labels, tests=tests)


def read_answers(folder: Path) -> SavedAnswers | None:
    """The answers in a trial's folder; None where only its summary is there, as from another machine."""
    path = folder / "answers.parquet"
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    logits, fp32 = (table.filter(regex=rf"^{kind}_\d+$").to_numpy(float) for kind in ("logit", "fp32_logit"))
    return SavedAnswers(labels=table["label"].to_numpy(), logits=logits, fp32=fp32)


def measuring_rows(trials: Sequence[SavedAnswers | None], share: float, seed: int) -> np.ndarray | None:
    """The rows, bool (N,), that do not choose among these trials and measure the chosen one.

    None where the same rows do both: where fewer than two trials leave nothing to choose, where a trial's
    answers are not there or are to other rows, and where there are too few rows to hold any out.
    """
    first = trials[0] if trials else None
    if first is None or len(trials) < 2:
        return None
    if not all(other is not None and np.array_equal(other.labels, first.labels) for other in trials):
        return None
    mask = held_out(first.labels, share, seed)
    return mask if mask.any() else None


def measured_where(held_out: np.ndarray | None, rows: int, candidates: int) -> str:
    """Which rows chose and measured a trial, in words; ``rows`` are all, 0 where their number is not
    known."""
    if held_out is not None:
        measuring = int(held_out.sum())
        return f"measured on {measuring:,} rows, chosen on {rows - measuring:,} others"
    known = f"{rows:,} rows" if rows else "rows"
    return (
        f"measured on the {known} that chose it, which flatters it"
        if candidates > 1
        else f"measured on {known}"
    )
