"""The answers of finished trials, and which examples choose among the trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from quantlab.evaluation.significance import Comparison, compare
from quantlab.tasks.sampling import held_out
from quantlab.tasks.scores import SCORES


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedAnswers:
    """The answers in a trial's folder: labels (N,), the trial's and FP32's logits (N, classes)."""

    labels: np.ndarray
    logits: np.ndarray
    fp32: np.ndarray

    @property
    def missing(self) -> int:
        """The number of examples for which the trial's or FP32's logits are not finite."""
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
        return float("nan") if self.missing else SCORES[metric].total(self.logits, self.labels)

    def against_fp32(self, metric: str, tests: int = 1) -> Comparison:
        """The trial less FP32, corrected for ``tests`` comparisons."""
        return compare(metric, self.fp32, self.logits, self.labels, tests=tests)


def read_answers(folder: Path) -> SavedAnswers | None:
    """Reads the answers in a trial's folder; None where the file is missing."""
    path = folder / "answers.parquet"
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    logits, fp32 = (table.filter(regex=rf"^{kind}_\d+$").to_numpy(float) for kind in ("logit", "fp32_logit"))
    return SavedAnswers(labels=table["label"].to_numpy(), logits=logits, fp32=fp32)


def measuring_rows(trials: Sequence[SavedAnswers | None], share: float, seed: int) -> np.ndarray | None:
    """The examples, bool (N,), that measure the chosen trial and do not choose it.

    None where the same examples do both: with fewer than two trials, where a trial's answers are missing or
    belong to other examples, and where there are too few examples to hold any out.
    """
    first = trials[0] if trials else None
    if first is None or len(trials) < 2:
        return None
    if not all(other is not None and np.array_equal(other.labels, first.labels) for other in trials):
        return None
    mask = held_out(first.labels, share, seed)
    return mask if mask.any() else None


def measured_where(held_out: np.ndarray | None, rows: int, candidates: int) -> str:
    """Which rows chose and measured a trial, in words; ``rows`` is the number of all, 0 where unknown."""
    if held_out is not None:
        measuring = int(held_out.sum())
        return f"measured on {measuring:,} rows, chosen on {rows - measuring:,} others"
    known = f"{rows:,} rows" if rows else "rows"
    return (
        f"measured on the {known} that chose it, which flatters it"
        if candidates > 1
        else f"measured on {known}"
    )
