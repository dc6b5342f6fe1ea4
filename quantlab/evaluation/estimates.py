"""Estimates of the difference between two models that answered the same units: error, p, spread of a pair.

Sources are those of :mod:`quantlab.evaluation.significance`.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy

from quantlab.evaluation.clustered import ClusteredMean, ratio_of_sums, t_of
from quantlab.tasks.scores import SCORES

ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A paired difference."""

    centre: float  # of its interval
    error: float  # standard error
    p: float  # two-sided, of no difference
    sd: float  # standard deviation of the differences of single pairs
    clusters: int | None = None  # that Student's t counts; None: the estimate is normal

    def half_width(self, level: float) -> float:
        """Half the width of the interval of this level, in standard errors."""
        if self.clusters is None:
            return float(scipy.stats.norm.isf((1 - level) / 2))
        return t_of(level, self.clusters)


def agresti_min(reference_right: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Returns centre and standard error of Agresti and Min's interval of the paired difference.

    With b and c the lost and won examples, each plus 1/2, and n = N + 2: the centre is (b - c) / n, the error
    sqrt(b + c - (b - c)^2 / n) / n.
    """
    n = len(right) + 2
    lost = np.sum(reference_right & ~right) + 0.5
    won = np.sum(~reference_right & right) + 0.5
    drop = (lost - won) / n
    return float(drop), math.sqrt((lost + won) - (lost - won) ** 2 / n) / n


def one_hot(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the answers as one-hot rows, (N, classes). NaN or infinite logits become a wrong answer."""
    classes = logits.shape[1]
    answers = np.where(np.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), (labels + 1) % classes)
    rows: np.ndarray = np.eye(classes)[answers]
    return rows


def estimate_right(
    before: np.ndarray, after: np.ndarray, detectable: float, clusters: np.ndarray | None = None
) -> Estimate:
    """Estimates the difference in the share of right units, of paired booleans, (N,); over clusters (N,) if
    there are some.

    Without clusters its ``sd`` is at least that of a model that loses a share of ``detectable`` of the
    answers and wins none.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if clusters is not None:
        mean = ratio_of_sums(after.astype(float) - before, np.ones(len(after)), clusters)
        return estimate_over_clusters(mean, len(after))
    table = [
        [np.sum(before & after), np.sum(before & ~after)],
        [np.sum(~before & after), np.sum(~before & ~after)],
    ]
    centre, error = agresti_min(after, before)
    p = max(float(mcnemar(table, exact=True).pvalue), normal_p(centre, error))
    sd = float(np.std(after.astype(np.float64) - before, ddof=min(1, len(after) - 1)))
    return Estimate(centre=centre, error=error, p=p, sd=max(sd, math.sqrt(detectable - detectable**2)))


def estimate_by_resampling(
    metric: str, other: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int
) -> Estimate:
    """Estimates the difference in any metric.

    The smallest p of a permutation test is 2 / (resamples + 1). There the bootstrap's p is taken alone.
    """
    centre = SCORES[metric].total(logits, labels) - SCORES[metric].total(other, labels)
    error = bootstrap_error(metric, other, logits, labels, resamples)
    swapped_p = permutation_p(metric, other, logits, labels, resamples)
    p = normal_p(centre, error)
    if swapped_p > 2 / (resamples + 1):
        p = max(swapped_p, p)
    return Estimate(centre=centre, error=error, p=p, sd=error * math.sqrt(len(labels)))


def estimate_over_clusters(mean: ClusteredMean, units: int) -> Estimate:
    """Estimates a difference from its mean over clusters of ``units`` units."""
    sd = mean.error * math.sqrt(units)
    return Estimate(centre=mean.centre, error=mean.error, p=mean.p, sd=sd, clusters=mean.clusters)


def normal_p(centre: float, error: float) -> float:
    """Returns the two-sided p of an estimate that is normal with mean 0 and this standard error."""
    return float(2 * scipy.stats.norm.sf(abs(centre) / error)) if error else float(centre == 0)


def bootstrap_error(
    metric: str, other: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int
) -> float:
    """Returns the bootstrap standard error of the difference; examples are resampled in pairs, seeded."""
    compute = SCORES[metric].total

    def difference(rows: np.ndarray) -> float:
        rows = rows.astype(np.int64)
        return compute(logits[rows], labels[rows]) - compute(other[rows], labels[rows])

    rows = (np.arange(len(labels)),)
    bootstrap = scipy.stats.bootstrap(
        rows, difference, n_resamples=resamples, vectorized=False, method="percentile", rng=0
    )
    return float(bootstrap.standard_error)


def permutation_p(
    metric: str, other: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int
) -> float:
    """Returns the two-sided p of the difference if the models' answers are swapped at random, seeded."""
    compute, both, rows = SCORES[metric].total, np.concatenate([other, logits]), np.arange(len(labels))

    def difference(one: np.ndarray, two: np.ndarray) -> float:
        return compute(both[two.astype(np.int64)], labels) - compute(both[one.astype(np.int64)], labels)

    return float(
        scipy.stats.permutation_test(
            (rows, rows + len(rows)),
            difference,
            permutation_type="samples",
            vectorized=False,
            n_resamples=resamples,
            rng=0,
        ).pvalue
    )


def pairs_needed(difference: float, sd: float) -> int:
    """Returns the number of pairs with which a t test detects the difference with 80 % power at 5 %."""
    effect = min(difference / sd, 1.0) if sd else 1.0
    from statsmodels.stats.power import TTestPower

    return math.ceil(float(TTestPower().solve_power(effect_size=effect, alpha=ALPHA, power=POWER)))
