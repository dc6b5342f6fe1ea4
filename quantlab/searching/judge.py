"""Compares a candidate with the reference on the same rows."""

from dataclasses import dataclass

import numpy as np

from quantlab.evaluation.significance import accuracy_drop_ci95, accuracy_drop_upper95, exceeds_drop_p
from quantlab.searching.evaluate import CandidateOutcomes
from quantlab.tasks.scores import compute
from quantlab.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A candidate's metric on some rows, and its drop there: how far it is below the reference, in points."""

    rows: int
    metric: float  # the task's first metric
    drop: float  # points; negative where the candidate is better
    low: float  # 95 % confidence interval of the drop; NaN where the metric has no pairs of rows
    high: float
    upper95: float  # one-sided 95 % bound of the drop


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Measures candidates against the reference's logits, (N, classes), on the same N rows."""

    task: Task
    labels: np.ndarray
    reference: np.ndarray

    @property
    def counts_right(self) -> bool:
        """True if the task's first metric is accuracy, for which paired tests exist."""
        return self.task.metrics[0] == "accuracy"

    def measure(self, outcomes: CandidateOutcomes) -> Measurement:
        """Metric and drop on the rows that the candidate answered."""
        low, high, upper95 = self.interval(outcomes)
        return Measurement(
            rows=outcomes.rows,
            metric=self.metric(outcomes),
            drop=self.drop(outcomes),
            low=low,
            high=high,
            upper95=upper95,
        )

    def right(self, outcomes: CandidateOutcomes) -> np.ndarray:
        """Which of the answered rows the candidate has right, bool. A row with NaN is wrong."""
        logits = outcomes.logits[outcomes.answered]
        answers = np.where(np.isnan(logits).any(1), -1, logits.argmax(-1))
        right: np.ndarray = answers == self.labels[outcomes.answered]
        return right

    def reference_right(self, outcomes: CandidateOutcomes) -> np.ndarray:
        """Which of the same rows the reference has right, bool."""
        right: np.ndarray = (self.reference.argmax(-1) == self.labels)[outcomes.answered]
        return right

    def drop(self, outcomes: CandidateOutcomes) -> float:
        """The reference's metric less the candidate's on the answered rows, in points."""
        if self.counts_right:
            return float(100 * (self.reference_right(outcomes).mean() - self.right(outcomes).mean()))
        rows, primary = outcomes.answered, self.task.metrics[0]
        reference = compute([primary], self.reference[rows], self.labels[rows])[primary]
        return 100 * (reference - self.metric(outcomes))

    def metric(self, outcomes: CandidateOutcomes) -> float:
        """The task's first metric on the answered rows."""
        if self.counts_right:
            return float(self.right(outcomes).mean())
        rows, primary = outcomes.answered, self.task.metrics[0]
        logits = np.nan_to_num(outcomes.logits[rows])
        return compute([primary], logits, self.labels[rows])[primary]

    def interval(self, outcomes: CandidateOutcomes) -> tuple[float, float, float]:
        """Ends of the drop's 95 % interval and its one-sided 95 % upper bound, in points. All NaN where the
        metric is not accuracy."""
        if not self.counts_right:
            return (np.nan,) * 3
        pair = (self.reference_right(outcomes), self.right(outcomes))
        low, high = accuracy_drop_ci95(*pair)
        return 100 * low, 100 * high, 100 * accuracy_drop_upper95(*pair)

    def exceeds_p(self, outcomes: CandidateOutcomes, limit: float) -> float:
        """P-value of a drop of more than ``limit`` points."""
        return exceeds_drop_p(self.reference_right(outcomes), self.right(outcomes), limit / 100)

    def behind_p(self, outcomes: CandidateOutcomes, best: np.ndarray) -> float:
        """P-value of being less accurate than the best candidate, which has ``best`` right, bool over all
        rows."""
        return exceeds_drop_p(best[outcomes.answered], self.right(outcomes), 0.0)
