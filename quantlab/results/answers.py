"""The answers of finished trials, and which examples choose among the trials."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from quantlab.evaluation.significance import Comparison, compare
from quantlab.tasks.sampling import held_out
from quantlab.tasks.scores import SCORES

FP32 = "fp32_"  # begins the names of FP32's columns


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedAnswers:
    """The answers in a trial's folder: one row a text, an image or a window of tokens."""

    labels: np.ndarray  # (N,)
    logits: np.ndarray  # (N, columns): the trial's logits, or what else its scores read
    fp32: np.ndarray  # (N, columns): FP32's
    columns: tuple[str, ...] = ()  # names of the columns; empty: logits
    clusters: np.ndarray | None = None  # (N,): units of one number belong together; None: each stands alone
    # (N,) ascending: where the units stand among the selected ones, of a trial that may have stopped before
    # the end; None: they are all of these.
    rows: np.ndarray | None = None

    @property
    def missing(self) -> int:
        """The number of units for which the trial's or FP32's answers are not finite."""
        return int((~(np.isfinite(self.logits).all(axis=1) & np.isfinite(self.fp32).all(axis=1))).sum())

    @property
    def classified(self) -> bool:
        """Whether the answers are logits of classes."""
        return self.labels.dtype.kind != "f" and all(name.startswith("logit_") for name in self.columns)

    def units(self, metric: str) -> np.ndarray | None:
        """Each unit's part in the metric, (N,), the more the better; None where it has no parts.

        1 where the trial's answer is right, else 0; of a perplexity, whose logarithm is their mean, minus the
        unit's share of the log-likelihood in nats.
        """
        score = SCORES[metric]
        if score.parts is not None:
            above, below = score.parts(self.logits)
            shares: np.ndarray = -above / below.mean()
            return shares
        own = score.right_of is not None or not self.classified
        right = (score if own else SCORES["accuracy"]).right(self.logits, self.labels)
        return None if right is None else right.astype(float)

    def where(self, rows: np.ndarray) -> "SavedAnswers":
        """The rows for which the mask, bool (N,), is true."""
        return replace(
            self,
            labels=self.labels[rows],
            logits=self.logits[rows],
            fp32=self.fp32[rows],
            clusters=None if self.clusters is None else self.clusters[rows],
            rows=None if self.rows is None else self.rows[rows],
        )

    def same_units(self, other: "SavedAnswers") -> bool:
        """Whether both trials answered the same units."""
        return np.array_equal(self.labels, other.labels) and np.array_equal(self._places, other._places)

    @property
    def _places(self) -> np.ndarray:
        return np.arange(len(self.labels)) if self.rows is None else self.rows

    def value(self, metric: str) -> float:
        """The trial's metric; NaN where an answer is missing."""
        return float("nan") if self.missing else SCORES[metric].total(self.logits, self.labels)

    def against_fp32(self, metric: str, tests: int = 1) -> Comparison:
        """The trial less FP32, corrected for ``tests`` comparisons."""
        return compare(metric, self.fp32, self.logits, self.labels, tests=tests, clusters=self.clusters)


def read_answers(folder: Path) -> SavedAnswers | None:
    """Reads the answers in a trial's folder; None where the file is missing."""
    path = folder / "answers.parquet"
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    columns = tuple(str(name) for name in table if f"{FP32}{name}" in table)
    return SavedAnswers(
        labels=table["label"].to_numpy(),
        logits=table[list(columns)].to_numpy(float),
        fp32=table[[f"{FP32}{name}" for name in columns]].to_numpy(float),
        columns=columns,
        clusters=table["cluster"].to_numpy() if "cluster" in table else None,
        rows=table["row"].to_numpy() if "row" in table else None,
    )


def measuring_rows(trials: Sequence[SavedAnswers | None], share: float, seed: int) -> np.ndarray | None:
    """The examples, bool (N,), that measure the chosen trial and do not choose it.

    None where the same examples do both: with fewer than two trials, where a trial's answers are missing or
    belong to other examples, and where there are too few examples to hold any out.
    """
    first = trials[0] if trials else None
    if first is None or len(trials) < 2:
        return None
    if not all(other is not None and other.same_units(first) for other in trials):
        return None
    mask = held_out(first.labels, share, seed, first.clusters)
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
