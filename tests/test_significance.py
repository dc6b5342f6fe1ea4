"""Intervals: a published formula, what they cover when tried, and the same numbers every time."""

import math

import numpy as np
import pytest
from scipy import stats

from quantlab.significance import accuracy_drop_ci95, accuracy_drop_upper95, exceeds_drop_p, metric_drop_ci95
from quantlab.tasks.metrics import METRICS

TABLES = [(0, 0, 10), (0, 0, 1600), (3, 1, 50), (1, 3, 50), (13, 0, 5463), (40, 27, 1600), (50, 0, 50), (0, 50, 50)]


def paired(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of a reference and of a model that loses and wins so many of ``n``."""
    reference, right = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    reference[:lost] = True
    right[lost : lost + won] = True
    reference[lost + won :: 2] = right[lost + won :: 2] = True
    return reference, right


@pytest.mark.parametrize("lost, won, n", TABLES)
def test_agresti_min(lost: int, won: int, n: int) -> None:
    """Agresti and Min 2005, section 3: Wald's interval of the table with half an example added to each cell."""
    b, c, total = lost + 0.5, won + 0.5, n + 2
    error = stats.norm.ppf(0.975) * math.sqrt((b + c) - (b - c) ** 2 / total) / total
    low, high = accuracy_drop_ci95(*paired(lost, won, n))
    assert (low, high) == pytest.approx(((b - c) / total - error, (b - c) / total + error), rel=1e-12)
    assert high - low > 0


@pytest.mark.parametrize("lost, won, n", TABLES)
def test_mirrored(lost: int, won: int, n: int) -> None:
    reference, right = paired(lost, won, n)
    low, high = accuracy_drop_ci95(reference, right)
    assert accuracy_drop_ci95(right, reference) == pytest.approx((-high, -low))


def test_pairing_narrows_the_interval() -> None:
    random = np.random.default_rng(0)
    reference = random.random(1600) < 0.8
    right = reference ^ (random.random(1600) < 0.02)
    low, high = accuracy_drop_ci95(reference, right)
    unpaired = 2 * 1.96 * math.sqrt(2 * 0.8 * 0.2 / 1600)
    assert high - low < unpaired / 2


@pytest.mark.parametrize("n", [30, 100, 1600])
@pytest.mark.parametrize("lost, won", [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1), (0.001, 0.0), (0.4, 0.0)])
def test_agresti_min_covers(lost: float, won: float, n: int) -> None:
    """Of 4,000 simulated comparisons, the true difference lies in 93 % of the intervals or more."""
    random = np.random.default_rng(0)
    tables = random.multinomial(n, [lost, won, 1 - lost - won], size=4000)
    intervals = {
        tuple(table): accuracy_drop_ci95(*paired(table[0], table[1], n)) for table in np.unique(tables, axis=0)
    }
    covered = [low <= lost - won <= high for low, high in (intervals[tuple(table)] for table in tables)]
    assert np.mean(covered) >= 0.93


def answered(metric: str, n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a reference, of a noisier model, and the labels."""
    random = np.random.default_rng(seed)
    regression = metric in ("pearson", "spearmanr")
    labels = random.normal(size=n) if regression else random.integers(0, 2, n)
    clean = labels[:, None] if regression else np.stack([1.0 - labels, labels], axis=1)
    reference = clean + 0.5 * random.normal(size=clean.shape)
    return reference, reference + noise * random.normal(size=clean.shape), labels


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "accuracy"])
def test_bootstrap(metric: str) -> None:
    reference, logits, labels = answered(metric, 150, 0.7, seed=0)
    low, high = metric_drop_ci95(metric, reference, logits, labels, resamples=99)
    drop = METRICS[metric](reference, labels) - METRICS[metric](logits, labels)
    assert low < drop < high
    assert (low, high) == metric_drop_ci95(metric, reference, logits, labels, resamples=99)
    assert metric_drop_ci95(metric, reference, reference, labels, resamples=19) == (0.0, 0.0)
    assert low > -high / 2  # noise costs; the interval is not centred on zero


def test_bootstrap_by_hand() -> None:
    """Percentiles of the difference over other resamples, both models answering the same rows of each."""
    reference, logits, labels = answered("pearson", 80, 0.5, seed=1)
    random, drops = np.random.default_rng(7), []
    for _ in range(999):
        rows = random.integers(0, 80, 80)
        one, other = (np.corrcoef(scores[rows, 0], labels[rows])[0, 1] for scores in (reference, logits))
        drops.append(one - other)
    low, high = metric_drop_ci95("pearson", reference, logits, labels)
    assert (low, high) == pytest.approx(tuple(np.percentile(drops, [2.5, 97.5])), abs=0.1 * (high - low))


def test_bootstrap_covers() -> None:
    large = answered("pearson", 200_000, 0.7, seed=99)
    true = METRICS["pearson"](large[0], large[2]) - METRICS["pearson"](large[1], large[2])
    covered = []
    for seed in range(20):
        low, high = metric_drop_ci95("pearson", *answered("pearson", 150, 0.7, seed), resamples=99)
        covered.append(low <= true <= high)
    assert np.mean(covered) >= 0.8  # two standard errors of 20 intervals are 0.1, and 99 resamples cost a little


@pytest.mark.parametrize("lost, won, n", TABLES)
def test_the_one_sided_bound_is_agresti_mins_at_95_percent(lost: int, won: int, n: int) -> None:
    b, c, total = lost + 0.5, won + 0.5, n + 2
    error = stats.norm.ppf(0.95) * math.sqrt((b + c) - (b - c) ** 2 / total) / total
    upper = accuracy_drop_upper95(*paired(lost, won, n))
    assert upper == pytest.approx((b - c) / total + error, rel=1e-9)
    assert upper < accuracy_drop_ci95(*paired(lost, won, n))[1]


@pytest.mark.parametrize("n", [100, 1600])
@pytest.mark.parametrize("lost, won", [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1)])
def test_the_one_sided_bound_covers(lost: float, won: float, n: int) -> None:
    random = np.random.default_rng(0)
    tables = random.multinomial(n, [lost, won, 1 - lost - won], size=4000)
    bounds = {
        tuple(table): accuracy_drop_upper95(*paired(table[0], table[1], n)) for table in np.unique(tables, axis=0)
    }
    assert np.mean([lost - won <= bounds[tuple(table)] for table in tables]) >= 0.93


@pytest.mark.parametrize("lost, won, n", TABLES)
def test_beyond_no_drop_at_all_is_the_sign_test(lost: int, won: int, n: int) -> None:
    expected = stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue if lost + won else 1.0
    assert exceeds_drop_p(*paired(lost, won, n), 0.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("limit", [0.0, 0.005, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 10, 1600])
def test_where_no_pair_differs_nothing_speaks_against_a_candidate(n: int, limit: float) -> None:
    assert exceeds_drop_p(*paired(0, 0, n), limit) == 1


@pytest.mark.parametrize("lost, won, n", [table for table in TABLES if table[0] + table[1]])
def test_the_larger_the_limit_the_less_speaks_against_a_candidate(lost: int, won: int, n: int) -> None:
    found = [exceeds_drop_p(*paired(lost, won, n), limit) for limit in np.linspace(0, 1, 101)]
    assert (found == sorted(found) and found[-1] == 1 and 0 < found[0] < 1) or lost == 0
    assert all(0 <= p <= 1 for p in found)


def test_a_larger_loss_speaks_more_against_a_candidate() -> None:
    found = [exceeds_drop_p(*paired(lost, 5, 400), 0.01) for lost in range(5, 60)]
    assert found == sorted(found, reverse=True) and found[0] > 0.5 and found[-1] < 1e-6


@pytest.mark.parametrize("n", [64, 400, 1600])
@pytest.mark.parametrize(
    "limit, differing", [(0.0, 0.05), (0.0, 0.3), (0.005, 0.02), (0.005, 0.1), (0.02, 0.05), (0.02, 0.2), (0.1, 0.15)]
)
def test_a_drop_of_the_limit_is_rarely_called_larger(limit: float, differing: float, n: int) -> None:
    """Of 4,000 simulated candidates that lose exactly the limit, 6 % or fewer are said, at 5 %, to lose more."""
    lost, won = (differing + limit) / 2, (differing - limit) / 2
    tables = np.random.default_rng(0).multinomial(n, [lost, won, 1 - differing], size=4000)
    p = {tuple(table): exceeds_drop_p(*paired(table[0], table[1], n), limit) for table in np.unique(tables, axis=0)}
    assert np.mean([p[tuple(table)] < 0.05 for table in tables]) <= 0.06
