"""Intervals, tests and verdicts for differences between two models that answered the same examples."""

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy

from quantlab.tasks.metrics import METRICS, REGRESSION

Z95 = float(scipy.special.ndtri(0.975))
ALPHA, POWER = 0.05, 0.8
DETECTABLE = 0.005  # half a point of accuracy is what people ask about
MIN_EXAMPLES = 3  # examples that a bootstrap can do anything with
ALMOST_ONE = 1 - 1e-12  # Fisher's z of a correlation of 1 is infinite


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model against another on the same examples. Differences are fractions of the metric: a gain is
    positive.

    The interval leaves out 0 exactly where p is below ``ALPHA``.
    """

    n: int
    difference: float  # this less the other
    low: float
    high: float  # paired; of all comparisons that stand beside this one, 95 % at once
    p: float  # two-sided, corrected for as many comparisons; NaN where there is no test
    needed: int | None  # pairs that show ``least`` with 80 % power at 5 %; None where no two answers differ


def compare(
    metric: str,
    other: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    least: float = DETECTABLE,
    resamples: int = 999,
    tests: int = 1,
) -> Comparison:
    """A model with these ``logits`` against an ``other`` one, both (N, C), by any of the tasks' metrics.

    ``tests`` comparisons stand beside each other: by Bonferroni's correction p is multiplied by them, and the
    interval is of level 1 - 5 %/tests. For accuracy, p is the larger of the exact McNemar test's and of that
    which belongs to the interval of Agresti and Min; for other metrics, of a permutation test of paired swaps
    and of that which belongs to the bootstrap interval. Where p says nothing at 5 %, the interval is widened
    to reach 0.

    Logits that are NaN or infinite count as a wrong answer; a regression, which knows no wrong answers, then
    gets NaN for all numbers. Raises ValueError where the arrays do not pair up.
    """
    if not 0 < least < 1:
        raise ValueError(f"least must be between 0 and 1, a fraction of the metric, got {least!r}")
    if not len(labels) or not other.shape == logits.shape == (len(labels), *logits.shape[1:]):
        raise ValueError(
            f"logits of {other.shape} and {logits.shape} and labels of {labels.shape} do not pair up"
        )
    if metric not in REGRESSION:
        other, logits = _answers(other, labels), _answers(logits, labels)
    untested = Comparison(
        n=len(labels), difference=math.nan, low=math.nan, high=math.nan, p=math.nan, needed=None
    )
    if not (np.isfinite(other).all() and np.isfinite(logits).all()):
        return untested
    difference = METRICS[metric](logits, labels) - METRICS[metric](other, labels)
    if metric != "accuracy" and len(labels) < MIN_EXAMPLES:
        return replace(untested, difference=difference)
    if metric == "accuracy":
        centre, error, p, sd = _paired_accuracy(other, logits, labels)
        sd = max(
            sd, math.sqrt(least - least**2)
        )  # that of a model which differs in ``least`` of its answers, all lost
    else:
        centre, error, p, sd = _paired(metric, other, logits, labels, resamples)
    p, margin = min(1.0, tests * p), z_of(1 - ALPHA / tests) * error
    low, high = centre - margin, centre + margin
    if p >= ALPHA:
        low, high = min(low, 0.0), max(high, 0.0)
    needed = None if np.array_equal(other, logits) else _needed(least, sd)
    return Comparison(n=len(labels), difference=difference, low=low, high=high, p=p, needed=needed)


def z_of(level: float) -> float:
    """Standard errors to either side of a normal interval of a level, 1.96 of 0.95."""
    return float(scipy.stats.norm.isf((1 - level) / 2))


def examples_needed(low: float, high: float, n: int, least: float = DETECTABLE) -> int:
    """Pairs that show ``least`` with 80 % power at 5 %, where ``n`` gave a 95 % interval from ``low`` to
    ``high``."""
    return _needed(least, (high - low) / (2 * Z95) * math.sqrt(n))


def verdict(comparison: Comparison, least: float = DETECTABLE) -> str:
    """A comparison in words; ``least`` is what ``needed`` was asked for."""
    n = f"n = {comparison.n:,}"
    if math.isnan(comparison.p):
        reason = "too few examples" if comparison.n < MIN_EXAMPLES else "NaN or infinite scores"
        return f"no test with {n}: {reason}"
    if comparison.needed is None:
        return "the same answers"
    if comparison.p < ALPHA:
        return "better" if comparison.difference > 0 else "worse"
    to_see = f"to see {100 * least:g} points"
    if comparison.needed <= comparison.n:
        return f"not distinguishable with {n}, enough {to_see}"
    step = 10 ** max(len(str(comparison.needed)) - 2, 0)
    return (
        f"not distinguishable with {n}; needs about n = "
        f"{math.ceil(comparison.needed / step) * step:,} {to_see}"
    )


def accuracy_drop_ci95(reference_right: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """95 % interval of ``mean(reference_right) - mean(right)`` for paired booleans of shape (N,).

    The adjusted Wald interval of Agresti and Min (Statistics in Medicine 24, 2005, section 3): half an
    example is added to each cell of the 2 x 2 table, which keeps its coverage where few answers differ, and a
    width above zero where none does.
    """
    drop, error = _adjusted(reference_right, right)
    return drop - Z95 * error, drop + Z95 * error


def metric_drop_ci95(
    metric: str, reference: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int = 999
) -> tuple[float, float]:
    """95 % interval of ``metric(reference) - metric(logits)``: 1.96 bootstrap errors to either side of it.

    ``reference`` and ``logits`` are (N, C), ``labels`` (N,). Seeded: the same inputs give the same interval.
    """
    compute = METRICS[metric]
    drop = compute(reference, labels) - compute(logits, labels)
    error = _bootstrap_error(metric, logits, reference, labels, resamples)
    return drop - Z95 * error, drop + Z95 * error


def spearman_ci95(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of two (N,) and its 95 % interval; NaN where one is constant, or N below 4.

    Fisher's z with the error of Bonett and Wright (Psychometrika 65, 2000): sqrt((1 + r² / 2) / (N - 3)).
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0 or len(one) < 4:
        return math.nan, math.nan, math.nan
    r = float(scipy.stats.spearmanr(one, other).statistic)
    z = math.atanh(max(min(r, ALMOST_ONE), -ALMOST_ONE))
    margin = Z95 * math.sqrt((1 + r**2 / 2) / (len(one) - 3))
    return r, math.tanh(z - margin), math.tanh(z + margin)


def accuracy_drop_error(reference_right: np.ndarray, right: np.ndarray) -> float:
    """Standard error of ``mean(reference_right) - mean(right)`` for paired booleans of shape (N,)."""
    return float(np.std(reference_right.astype(np.float64) - right) / math.sqrt(len(right)))


def accuracy_drop_upper95(reference_right: np.ndarray, right: np.ndarray) -> float:
    """One-sided 95 % upper bound of the same difference, by the same adjusted interval."""
    drop, error = _adjusted(reference_right, right)
    return drop + float(scipy.stats.norm.ppf(0.95)) * error


def exceeds_drop_p(reference_right: np.ndarray, right: np.ndarray, limit: float) -> float:
    """P-value of a drop in accuracy as large as seen, or larger, were the true drop ``limit``; booleans of
    shape (N,).

    Wilcoxon's signed-rank test on outcomes that are right or wrong is the sign test of the pairs that differ:
    lost ones against won ones. A drop of exactly ``limit`` makes ``1/2 + N limit / (2 pairs)`` of them lost
    ones; as the number of pairs is chance too, the adjusted interval must then leave the limit out as well.
    """
    lost, won = int(np.sum(reference_right & ~right)), int(np.sum(~reference_right & right))
    pairs = lost + won
    expected = 0.5 + len(right) * limit / (2 * pairs) if pairs else 1.0
    if expected >= 1:
        return 1.0
    sign_p = float(scipy.stats.binomtest(lost, pairs, expected, alternative="greater").pvalue)
    if limit == 0:
        return sign_p
    drop, error = _adjusted(reference_right, right)
    return max(sign_p, float(scipy.stats.norm.sf((drop - limit) / error)))


def _adjusted(reference_right: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Agresti and Min's centre and standard error of the paired difference."""
    n = len(right) + 2
    lost = np.sum(reference_right & ~right) + 0.5
    won = np.sum(~reference_right & right) + 0.5
    drop = (lost - won) / n
    return float(drop), math.sqrt((lost + won) - (lost - won) ** 2 / n) / n


def _answers(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One-hot answers, (N, C); where logits are NaN or infinite, a wrong one."""
    classes = logits.shape[1]
    given = np.where(np.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), (labels + 1) % classes)
    one_hot: np.ndarray = np.eye(classes)[given]
    return one_hot


def _paired_accuracy(
    other: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> tuple[float, float, float, float]:
    """Centre and standard error of the difference's interval, p, and the standard deviation of paired
    differences."""
    from statsmodels.stats.contingency_tables import mcnemar

    before, after = (each.argmax(axis=-1) == labels for each in (other, logits))
    table = [
        [np.sum(before & after), np.sum(before & ~after)],
        [np.sum(~before & after), np.sum(~before & ~after)],
    ]
    centre, error = _adjusted(after, before)
    p = max(float(mcnemar(table, exact=True).pvalue), _normal_p(centre, error))
    seen = float(np.std(after.astype(np.float64) - before, ddof=min(1, len(labels) - 1)))
    return centre, error, p, seen


def _paired(
    metric: str, other: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int
) -> tuple[float, float, float, float]:
    """The same for another metric. Swaps say of a p no more than that it is below 2 of their number: then it
    is the bootstrap's own."""
    centre = METRICS[metric](logits, labels) - METRICS[metric](other, labels)
    error = _bootstrap_error(metric, other, logits, labels, resamples)
    swapped, p = _swapped_p(metric, other, logits, labels, resamples), _normal_p(centre, error)
    return (
        centre,
        error,
        p if swapped <= 2 / (resamples + 1) else max(swapped, p),
        error * math.sqrt(len(labels)),
    )


def _normal_p(centre: float, error: float) -> float:
    """Two-sided p of a normal estimate, were its mean 0."""
    return float(2 * scipy.stats.norm.sf(abs(centre) / error)) if error else float(centre == 0)


def _bootstrap_error(
    metric: str, other: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int
) -> float:
    """Standard deviation of the difference over resamples of the examples, which both models answer.
    Seeded."""
    compute = METRICS[metric]

    def difference(rows: np.ndarray) -> float:
        rows = rows.astype(np.int64)
        return compute(logits[rows], labels[rows]) - compute(other[rows], labels[rows])

    rows = (np.arange(len(labels)),)
    found = scipy.stats.bootstrap(
        rows, difference, n_resamples=resamples, vectorized=False, method="percentile", rng=0
    )
    return float(found.standard_error)


def _swapped_p(
    metric: str, other: np.ndarray, logits: np.ndarray, labels: np.ndarray, resamples: int
) -> float:
    """Two-sided p of the difference, were it chance which of two answers is whose. Seeded."""
    compute, both, rows = METRICS[metric], np.concatenate([other, logits]), np.arange(len(labels))

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


def _needed(least: float, sd: float) -> int:
    """Pairs that a t test needs to see a difference of ``least``."""
    effect = min(least / sd, 1.0) if sd else 1.0
    from statsmodels.stats.power import TTestPower

    return math.ceil(float(TTestPower().solve_power(effect_size=effect, alpha=ALPHA, power=POWER)))
