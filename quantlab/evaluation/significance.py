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
from quantlab.tasks.scores import REGRESSION, SCORES

Z95 = float(scipy.special.ndtri(0.975))
ALPHA, POWER = 0.05, 0.8
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


def compare(
    metric: str,
    other: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    detectable: float = DETECTABLE,
    resamples: int = 999,
    tests: int = 1,
) -> Comparison:
    """Compares a model's ``logits`` with an ``other`` model's, both (N, classes), by a task's metric.

    ``labels`` is (N,). ``tests`` is the number of comparisons made together: Bonferroni's correction
    multiplies p by it, and the interval has the level 1 - 0.05 / tests.

    For accuracy, p is the larger of the exact McNemar test's and of the p that belongs to the interval of
    Agresti and Min. For other metrics, p is the larger of a permutation test's and of the p that belongs to
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
    if metric not in REGRESSION:
        other, logits = _one_hot(other, labels), _one_hot(logits, labels)
    untested = Comparison(
        n=len(labels), difference=math.nan, low=math.nan, high=math.nan, p=math.nan, needed=None
    )
    if not (np.isfinite(other).all() and np.isfinite(logits).all()):
        return untested
    difference = SCORES[metric].total(logits, labels) - SCORES[metric].total(other, labels)
    if metric != "accuracy" and len(labels) < MIN_EXAMPLES:
        return replace(untested, difference=difference)
    if metric == "accuracy":
        estimate = _estimate_accuracy(other, logits, labels, detectable)
    else:
        estimate = _estimate_by_resampling(metric, other, logits, labels, resamples)
    p, margin = min(1.0, tests * estimate.p), z_of(1 - ALPHA / tests) * estimate.error
    low, high = estimate.centre - margin, estimate.centre + margin
    if p >= ALPHA:
        low, high = min(low, 0.0), max(high, 0.0)
    needed = None if np.array_equal(other, logits) else _pairs_needed(detectable, estimate.sd)
    return Comparison(n=len(labels), difference=difference, low=low, high=high, p=p, needed=needed)


def z_of(level: float) -> float:
    """Returns half the width of a normal interval of this level in standard errors: 1.96 for 0.95."""
    return float(scipy.stats.norm.isf((1 - level) / 2))


def examples_needed(low: float, high: float, n: int, detectable: float = DETECTABLE) -> int:
    """Returns the number of examples that detect ``detectable`` with 80 % power at 5 %.

    ``low`` to ``high`` is the 95 % interval that ``n`` examples gave.
    """
    return _pairs_needed(detectable, (high - low) / (2 * Z95) * math.sqrt(n))


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
    to_see = f"to see {100 * detectable:g} points"
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
    drop, error = _agresti_min(reference_right, right)
    return drop - Z95 * error, drop + Z95 * error


def metric_drop_ci95(
    metric: str, reference: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int = 999
) -> tuple[float, float]:
    """Returns the 95 % interval of ``metric(reference) - metric(logits)``, +- 1.96 bootstrap standard errors.

    ``reference`` and ``logits`` are (N, classes), ``labels`` (N,). The resamples are seeded.
    """
    compute = SCORES[metric].total
    drop = compute(reference, labels) - compute(logits, labels)
    error = _bootstrap_error(metric, logits, reference, labels, resamples)
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
    drop, error = _agresti_min(reference_right, right)
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
    drop, error = _agresti_min(reference_right, right)
    return max(sign_p, float(scipy.stats.norm.sf((drop - limit) / error)))


@dataclass(frozen=True, kw_only=True)
class _Estimate:
    """A paired difference."""

    centre: float  # of its interval
    error: float  # standard error
    p: float  # two-sided, of no difference
    sd: float  # standard deviation of the differences of single pairs


def _agresti_min(reference_right: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Returns centre and standard error of Agresti and Min's interval of the paired difference.

    With b and c the lost and won examples, each plus 1/2, and n = N + 2: the centre is (b - c) / n, the error
    sqrt(b + c - (b - c)^2 / n) / n.
    """
    n = len(right) + 2
    lost = np.sum(reference_right & ~right) + 0.5
    won = np.sum(~reference_right & right) + 0.5
    drop = (lost - won) / n
    return float(drop), math.sqrt((lost + won) - (lost - won) ** 2 / n) / n


def _one_hot(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the answers as one-hot rows, (N, classes). NaN or infinite logits become a wrong answer."""
    classes = logits.shape[1]
    answers = np.where(np.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), (labels + 1) % classes)
    one_hot: np.ndarray = np.eye(classes)[answers]
    return one_hot


def _estimate_accuracy(
    other: np.ndarray, logits: np.ndarray, labels: np.ndarray, detectable: float
) -> _Estimate:
    """Estimates the difference in accuracy.

    Its ``sd`` is at least that of a model that loses a share of ``detectable`` of the answers and wins none.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    before, after = (each.argmax(axis=-1) == labels for each in (other, logits))
    table = [
        [np.sum(before & after), np.sum(before & ~after)],
        [np.sum(~before & after), np.sum(~before & ~after)],
    ]
    centre, error = _agresti_min(after, before)
    p = max(float(mcnemar(table, exact=True).pvalue), _normal_p(centre, error))
    sd = float(np.std(after.astype(np.float64) - before, ddof=min(1, len(labels) - 1)))
    return _Estimate(centre=centre, error=error, p=p, sd=max(sd, math.sqrt(detectable - detectable**2)))


def _estimate_by_resampling(
    metric: str, other: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int
) -> _Estimate:
    """Estimates the difference in any metric.

    The smallest p of a permutation test is 2 / (resamples + 1). There the bootstrap's p is taken alone.
    """
    centre = SCORES[metric].total(logits, labels) - SCORES[metric].total(other, labels)
    error = _bootstrap_error(metric, other, logits, labels, resamples)
    permutation_p = _permutation_p(metric, other, logits, labels, resamples)
    p = _normal_p(centre, error)
    if permutation_p > 2 / (resamples + 1):
        p = max(permutation_p, p)
    return _Estimate(centre=centre, error=error, p=p, sd=error * math.sqrt(len(labels)))


def _normal_p(centre: float, error: float) -> float:
    """Returns the two-sided p of an estimate that is normal with mean 0 and this standard error."""
    return float(2 * scipy.stats.norm.sf(abs(centre) / error)) if error else float(centre == 0)


def _bootstrap_error(
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


def _permutation_p(
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


def _pairs_needed(difference: float, sd: float) -> int:
    """Returns the number of pairs with which a t test detects the difference with 80 % power at 5 %."""
    effect = min(difference / sd, 1.0) if sd else 1.0
    from statsmodels.stats.power import TTestPower

    return math.ceil(float(TTestPower().solve_power(effect_size=effect, alpha=ALPHA, power=POWER)))
