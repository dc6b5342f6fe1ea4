"""Intervals and tests for the difference between two models that answered the same examples.

Sources, by short name:

- Agresti and Min 2005: Simple improved confidence intervals for comparing matched proportions, Statistics in
  Medicine 24, section 3.
- McNemar 1947: Note on the sampling error of the difference between correlated proportions, Psychometrika 12.
- Efron and Tibshirani 1993: An Introduction to the Bootstrap; chapter 6 has the standard error,
  chapter 15 the permutation test.
- Bonett and Wright 2000: Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
  Psychometrika 65.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy

from quantlab.evaluation.clustered import log_ratio, ratio_of_sums
from quantlab.evaluation.estimates import (
    ALPHA,
    Estimate,
    agresti_min,
    bootstrap_error,
    estimate_by_resampling,
    estimate_over_clusters,
    estimate_right,
    one_hot,
    pairs_needed,
)
from quantlab.tasks.scores import CLASSIFICATION, SCORES

Z95 = float(scipy.special.ndtri(0.975))
DETECTABLE = 0.005  # the difference to detect: half a point of accuracy
MIN_EXAMPLES = 3  # fewer give no bootstrap interval
ALMOST_ONE = 1 - 1e-12  # in place of a correlation of 1, whose Fisher z is infinite


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model compared with another on the same examples.

    Differences are of the metric, as fractions; a gain is positive. The interval leaves out 0 if and only if
    p is below :data:`ALPHA`.
    """

    n: int  # examples
    difference: float  # the model's metric minus the other's
    low: float  # of the paired 95 % interval; simultaneous for all comparisons that were made together
    high: float
    p: float  # two-sided, corrected for the number of comparisons; NaN if there is no test
    needed: (
        int | None
    )  # examples that detect ``detectable`` with 80 % power at 5 %; None if all answers agree
    unit: str = "points"  # of 100 times a difference


def compare(
    metric: str,
    other: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    detectable: float = DETECTABLE,
    resamples: int = 999,
    tests: int = 1,
    clusters: np.ndarray | None = None,
) -> Comparison:
    """Compares a model's ``logits`` with an ``other`` model's, both (N, classes), by a task's metric.

    ``labels`` is (N,). ``tests`` is the number of comparisons made together: Bonferroni's correction
    multiplies p by it, and the interval has the level 1 - 0.05 / tests.

    For accuracy, p is the larger of the exact McNemar test's and of the p that belongs to the interval of
    Agresti and Min; so it is for every share of right units. A perplexity's difference is 1 - ratio: its
    interval and p are of the logarithm of the ratio, by Student's t over windows. With ``clusters`` (N,) both
    are over clusters. For other metrics, p is the larger of a permutation test's and of the p that belongs to
    the bootstrap interval. If p is at least 5 %, the interval is widened to reach 0.

    Logits that are NaN or infinite count as a wrong answer. In a regression they make all numbers NaN. Raises
    ValueError if the shapes do not match or ``detectable`` is not in (0, 1).
    """
    if not 0 < detectable < 1:
        raise ValueError(f"detectable must be between 0 and 1, a fraction of the metric, got {detectable!r}")
    if not len(labels) or not other.shape == logits.shape == (len(labels), *logits.shape[1:]):
        raise ValueError(
            f"logits of {other.shape} and {logits.shape} and labels of {labels.shape} do not pair up"
        )
    score = SCORES[metric]
    if metric in CLASSIFICATION:
        other, logits = one_hot(other, labels), one_hot(logits, labels)
    untested = Comparison(
        n=len(labels),
        difference=math.nan,
        low=math.nan,
        high=math.nan,
        p=math.nan,
        needed=None,
        unit=score.loss_unit,
    )
    if not (np.isfinite(other).all() and np.isfinite(logits).all()):
        return untested
    difference = -score.lost(score.total(logits, labels), score.total(other, labels))
    right, other_right = score.right(logits, labels), score.right(other, labels)
    units = len(labels) if clusters is None else len(np.unique(clusters))
    if units < MIN_EXAMPLES and (right is None or clusters is not None):
        return replace(untested, difference=difference)
    if score.relative:
        estimate = estimate_over_clusters(log_ratio(metric, other, logits, clusters), len(labels))
    elif right is None or other_right is None:
        estimate = estimate_by_resampling(metric, other, logits, labels, resamples)
    else:
        estimate = estimate_right(other_right, right, detectable, clusters)
    p, low, high = _corrected(estimate, tests)
    if score.relative:  # of the logarithm of the ratio, where more is worse
        low, high = -math.expm1(high), -math.expm1(low)
    needed = None if np.array_equal(other, logits) else pairs_needed(detectable, estimate.sd)
    return replace(untested, difference=difference, low=low, high=high, p=p, needed=needed)


def _corrected(estimate: Estimate, tests: int) -> tuple[float, float, float]:
    """p and the interval's ends, for so many comparisons. The interval reaches 0 if p is at least 5 %."""
    p, margin = min(1.0, tests * estimate.p), estimate.half_width(1 - ALPHA / tests) * estimate.error
    low, high = estimate.centre - margin, estimate.centre + margin
    return (p, min(low, 0.0), max(high, 0.0)) if p >= ALPHA else (p, low, high)


def z_of(level: float) -> float:
    """Returns half the width of a normal interval of this level in standard errors: 1.96 for 0.95."""
    return float(scipy.stats.norm.isf((1 - level) / 2))


def examples_needed(low: float, high: float, n: int, detectable: float = DETECTABLE) -> int:
    """Returns the number of examples that detect ``detectable`` with 80 % power at 5 %.

    ``low`` to ``high`` is the 95 % interval that ``n`` examples gave.
    """
    return pairs_needed(detectable, (high - low) / (2 * Z95) * math.sqrt(n))


def verdict(comparison: Comparison, detectable: float = DETECTABLE) -> str:
    """Returns a comparison in words. ``detectable`` is the difference that its ``needed`` is for."""
    n = f"n = {comparison.n:,}"
    if math.isnan(comparison.p):
        reason = "too few examples" if comparison.n < MIN_EXAMPLES else "NaN or infinite scores"
        return f"no test with {n}: {reason}"
    if comparison.needed is None:
        return "the same answers"
    if comparison.p < ALPHA:
        return "better" if comparison.difference > 0 else "worse"
    to_see = f"to see {100 * detectable:g} {comparison.unit}"
    if comparison.needed <= comparison.n:
        return f"not distinguishable with {n}, enough {to_see}"
    step = 10 ** max(len(str(comparison.needed)) - 2, 0)
    return (
        f"not distinguishable with {n}; needs about n = "
        f"{math.ceil(comparison.needed / step) * step:,} {to_see}"
    )


def ratio_ci95(
    score: str, reference: np.ndarray, values: np.ndarray, clusters: np.ndarray | None = None
) -> tuple[float, float]:
    """Returns the 95 % interval of a relative score's ratio, that of ``values`` over that of ``reference``.

    Both are (N, C), ``clusters`` (N,). The interval is of the logarithm, by :func:`ratio_of_sums`, with
    Student's t. NaN where there are fewer than two clusters.
    """
    estimate = log_ratio(score, reference, values, clusters)
    margin = estimate.t95 * estimate.error
    return math.exp(estimate.centre - margin), math.exp(estimate.centre + margin)


def accuracy_drop_ci95(
    reference_right: np.ndarray, right: np.ndarray, clusters: np.ndarray | None = None
) -> tuple[float, float]:
    """Returns the 95 % interval of ``mean(reference_right) - mean(right)`` for paired booleans, (N,).

    With ``clusters`` (N,) it is that of :func:`ratio_of_sums`, with Student's t over clusters. Else it is the
    adjusted Wald interval of Agresti and Min 2005, section 3: half an example is added to each cell
    of the 2 x 2 table. That keeps the coverage if few answers differ, and a width above zero if none differs.
    """
    if clusters is not None:
        mean = ratio_of_sums(reference_right.astype(float) - right, np.ones(len(right)), clusters)
        return mean.centre - mean.t95 * mean.error, mean.centre + mean.t95 * mean.error
    drop, error = agresti_min(reference_right, right)
    return drop - Z95 * error, drop + Z95 * error


def metric_drop_ci95(
    metric: str, reference: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int = 999
) -> tuple[float, float]:
    """Returns the 95 % interval of ``metric(reference) - metric(logits)``, +- 1.96 bootstrap standard errors.

    ``reference`` and ``logits`` are (N, classes), ``labels`` (N,). The resamples are seeded.
    """
    compute = SCORES[metric].total
    drop = compute(reference, labels) - compute(logits, labels)
    error = bootstrap_error(metric, logits, reference, labels, resamples)
    return drop - Z95 * error, drop + Z95 * error


def spearman_ci95(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Returns Spearman's rank correlation r of two arrays, (N,), and the ends of its 95 % interval.

    The interval is of Fisher's z = atanh(r), with the standard error of Bonett and Wright 2000:
    sqrt((1 + r^2 / 2) / (N - 3)). All three are NaN if an array is constant or N < 4.
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0 or len(one) < 4:
        return math.nan, math.nan, math.nan
    r = float(scipy.stats.spearmanr(one, other).statistic)
    z = math.atanh(max(min(r, ALMOST_ONE), -ALMOST_ONE))
    margin = Z95 * math.sqrt((1 + r**2 / 2) / (len(one) - 3))
    return r, math.tanh(z - margin), math.tanh(z + margin)


def accuracy_drop_error(reference_right: np.ndarray, right: np.ndarray) -> float:
    """Returns the standard error of ``mean(reference_right) - mean(right)`` for paired booleans, (N,)."""
    return float(np.std(reference_right.astype(np.float64) - right) / math.sqrt(len(right)))


def accuracy_drop_upper95(reference_right: np.ndarray, right: np.ndarray) -> float:
    """Returns the one-sided 95 % upper bound of ``mean(reference_right) - mean(right)``.

    It belongs to the interval of :func:`accuracy_drop_ci95`.
    """
    drop, error = agresti_min(reference_right, right)
    return drop + float(scipy.stats.norm.ppf(0.95)) * error


def exceeds_drop_p(reference_right: np.ndarray, right: np.ndarray, limit: float) -> float:
    """Returns the p-value of a drop in accuracy at least as large as observed, if the true drop is ``limit``.

    The arguments are paired booleans, (N,). The test is the sign test of the pairs that differ, lost ones
    against won ones. (Wilcoxon's signed-rank test is the same if answers are only right or wrong.) If the
    true drop is ``limit``, a share of ``1/2 + N limit / (2 pairs)`` of these pairs is lost. As the number of
    pairs is random too, p is the larger of this test's and of the p that belongs to the adjusted interval.
    """
    lost, won = int(np.sum(reference_right & ~right)), int(np.sum(~reference_right & right))
    pairs = lost + won
    expected = 0.5 + len(right) * limit / (2 * pairs) if pairs else 1.0
    if expected >= 1:
        return 1.0
    sign_p = float(scipy.stats.binomtest(lost, pairs, expected, alternative="greater").pvalue)
    if limit == 0:
        return sign_p
    drop, error = agresti_min(reference_right, right)
    return max(sign_p, float(scipy.stats.norm.sf((drop - limit) / error)))
