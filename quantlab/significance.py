"""Intervals for differences between two models that answered the same examples."""

import math

import numpy as np
from scipy import stats

from quantlab.tasks.metrics import METRICS

Z95 = float(stats.norm.ppf(0.975))


def accuracy_drop_ci95(reference_right: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """95 % interval of ``mean(reference_right) - mean(right)`` for paired booleans of shape (N,).

    The adjusted Wald interval of Agresti and Min (Statistics in Medicine 24, 2005, section 3): half an example is added
    to each cell of the 2 x 2 table, which keeps its coverage where few answers differ, and a width above zero where
    none does.
    """
    drop, error = _adjusted(reference_right, right)
    return drop - Z95 * error, drop + Z95 * error


def metric_drop_ci95(
    metric: str, reference: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int = 999
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of ``metric(reference) - metric(logits)``, resampling examples in pairs.

    ``reference`` and ``logits`` are (N, C), ``labels`` (N,). Seeded: the same inputs give the same interval.
    """
    compute = METRICS[metric]

    def drop(rows: np.ndarray) -> float:
        rows = rows.astype(np.int64)
        return compute(reference[rows], labels[rows]) - compute(logits[rows], labels[rows])

    result = stats.bootstrap(
        (np.arange(len(labels)),), drop, n_resamples=resamples, vectorized=False, method="percentile", rng=0
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def accuracy_drop_upper95(reference_right: np.ndarray, right: np.ndarray) -> float:
    """One-sided 95 % upper bound of the same difference, by the same adjusted interval."""
    drop, error = _adjusted(reference_right, right)
    return drop + float(stats.norm.ppf(0.95)) * error


def exceeds_drop_p(reference_right: np.ndarray, right: np.ndarray, limit: float) -> float:
    """P-value of a drop in accuracy as large as seen, or larger, were the true drop ``limit``; booleans of shape (N,).

    Wilcoxon's signed-rank test on outcomes that are right or wrong is the sign test of the pairs that differ: lost ones
    against won ones. A drop of exactly ``limit`` makes ``1/2 + N limit / (2 pairs)`` of them lost ones; as the number
    of pairs is chance too, the adjusted interval must then leave the limit out as well.
    """
    lost, won = int(np.sum(reference_right & ~right)), int(np.sum(~reference_right & right))
    pairs = lost + won
    expected = 0.5 + len(right) * limit / (2 * pairs) if pairs else 1.0
    if expected >= 1:
        return 1.0
    sign_p = float(stats.binomtest(lost, pairs, expected, alternative="greater").pvalue)
    if limit == 0:
        return sign_p
    drop, error = _adjusted(reference_right, right)
    return max(sign_p, float(stats.norm.sf((drop - limit) / error)))


def _adjusted(reference_right: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Agresti and Min's centre and standard error of the paired difference."""
    n = len(right) + 2
    lost = np.sum(reference_right & ~right) + 0.5
    won = np.sum(~reference_right & right) + 0.5
    drop = (lost - won) / n
    return float(drop), math.sqrt((lost + won) - (lost - won) ** 2 / n) / n
