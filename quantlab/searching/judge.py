"""Compares a candidate with the reference on the same rows."""

import math
from dataclasses import dataclass

import numpy as np
import scipy

from quantlab.evaluation.clustered import log_ratio
from quantlab.evaluation.significance import (
    accuracy_drop_ci95,
    accuracy_drop_upper95,
    exceeds_drop_p,
)
from quantlab.searching.evaluate import CandidateOutcomes
from quantlab.tasks.scores import SCORES, Score
from quantlab.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A candidate's metric on some rows, and its drop there: how much worse than the reference it is, in
    points, or in percent for a relative score."""

    rows: int
    metric: float  # the task's first metric
    drop: float  # points or percent; negative where the candidate is better
    low: float  # 95 % confidence interval of the drop; NaN where the metric has no pairs of rows
    high: float
    upper95: float  # one-sided 95 % bound of the drop


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Measures candidates against the reference's answers, (N, columns), on the same N rows."""

    task: Task
    labels: np.ndarray
    reference: np.ndarray

    @property
    def score(self) -> Score:
        """The task's first score."""
        return SCORES[self.task.metrics[0]]

    @property
    def counts_right(self) -> bool:
        """True if the score is the share of right rows, for which tests of pairs exist."""
        return self.score.right_of is not None

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
        """Which of the answered rows the candidate has right, bool. A row with NaN is wrong; all are where
        nothing is right or wrong."""
        values, rows = outcomes.logits[outcomes.answered], outcomes.answered
        right = self.score.right(np.nan_to_num(values), self.labels[rows])
        return np.zeros(len(values), bool) if right is None else right & ~np.isnan(values).any(1)

    def reference_right(self, outcomes: CandidateOutcomes) -> np.ndarray:
        """Which of the same rows the reference has right, bool."""
        right = self.score.right(self.reference, self.labels)
        assert right is not None, f"{self.score.name} is no share of right rows"
        answered: np.ndarray = right[outcomes.answered]
        return answered

    def drop(self, outcomes: CandidateOutcomes) -> float:
        """100 times what the candidate lost against the reference on the answered rows: points, or percent.
        Infinite where a relative score is."""
        if self.counts_right:
            return float(100 * (self.reference_right(outcomes).mean() - self.right(outcomes).mean()))
        rows = outcomes.answered
        reference = self.score.total(self.reference[rows], self.labels[rows])
        return 100 * self.score.lost(self.metric(outcomes), reference)

    def metric(self, outcomes: CandidateOutcomes) -> float:
        """The task's first metric on the answered rows."""
        if self.counts_right:
            return float(self.right(outcomes).mean())
        rows = outcomes.answered
        if self.score.relative and not np.isfinite(outcomes.logits[rows]).all():
            return math.inf
        return self.score.total(np.nan_to_num(outcomes.logits[rows]), self.labels[rows])

    def interval(self, outcomes: CandidateOutcomes) -> tuple[float, float, float]:
        """Ends of the drop's 95 % interval and its one-sided 95 % upper bound, in points or percent. All NaN
        where the metric has no parts row by row."""
        if self.score.relative:
            return self._relative_interval(outcomes)
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

    def _relative_interval(self, outcomes: CandidateOutcomes) -> tuple[float, float, float]:
        """By Student's t of the logarithm of the ratio, over rows. NaN with fewer than two rows."""
        rows = outcomes.answered
        if not np.isfinite(outcomes.logits[rows]).all():
            return (math.nan,) * 3
        ratio = log_ratio(self.score.name, self.reference[rows], outcomes.logits[rows], None)
        one_sided = float(scipy.stats.t.isf(0.05, ratio.clusters - 1)) if ratio.clusters > 1 else math.nan
        ends = (-ratio.t95, ratio.t95, one_sided)
        low, high, upper = (100 * math.expm1(ratio.centre + end * ratio.error) for end in ends)
        return low, high, upper
