"""Intervals: a published formula, what they cover when tried, and the same numbers every time."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from scipy import stats
from statsmodels.stats.power import TTestPower

from quantlab.evaluation.significance import (
    Comparison,
    accuracy_drop_ci95,
    accuracy_drop_upper95,
    compare,
    exceeds_drop_p,
    metric_drop_ci95,
    verdict,
    z_of,
)
from quantlab.tasks.scores import CLASSIFICATION, REGRESSION

METRICS = CLASSIFICATION | REGRESSION

TABLES = [
    (0, 0, 10),
    (0, 0, 1600),
    (3, 1, 50),
    (1, 3, 50),
    (13, 0, 5463),
    (40, 27, 1600),
    (50, 0, 50),
    (0, 50, 50),
]


def paired(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of a reference and of a model that loses and wins so many of ``n``."""
    reference, right = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    reference[:lost] = True
    right[lost : lost + won] = True
    reference[lost + won :: 2] = right[lost + won :: 2] = True
    return reference, right


@pytest.mark.parametrize("lost, won, n", TABLES)
def test_agresti_min(lost: int, won: int, n: int) -> None:
    """Agresti and Min 2005, section 3: Wald's interval of the table with half an example added to each
    cell."""
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
        tuple(table): accuracy_drop_ci95(*paired(table[0], table[1], n))
        for table in np.unique(tables, axis=0)
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
    drop = METRICS[metric].total(reference, labels) - METRICS[metric].total(logits, labels)
    assert low < drop < high
    assert (low, high) == metric_drop_ci95(metric, reference, logits, labels, resamples=99)
    assert metric_drop_ci95(metric, reference, reference, labels, resamples=19) == (0.0, 0.0)
    assert low > -high / 2  # noise costs; the interval is not centred on zero


def test_bootstrap_by_hand() -> None:
    """The spread of the difference over other resamples, both models answering the same rows of each."""
    reference, logits, labels = answered("pearson", 80, 0.5, seed=1)
    random, drops = np.random.default_rng(7), []
    for _ in range(999):
        rows = random.integers(0, 80, 80)
        one, other = (np.corrcoef(scores[rows, 0], labels[rows])[0, 1] for scores in (reference, logits))
        drops.append(one - other)
    low, high = metric_drop_ci95("pearson", reference, logits, labels)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(drops, ddof=1), rel=0.1)


@pytest.mark.slow
def test_bootstrap_covers() -> None:
    large = answered("pearson", 200_000, 0.7, seed=99)
    true = METRICS["pearson"].total(large[0], large[2]) - METRICS["pearson"].total(large[1], large[2])
    covered = []
    for seed in range(20):
        low, high = metric_drop_ci95("pearson", *answered("pearson", 150, 0.7, seed), resamples=99)
        covered.append(low <= true <= high)
    assert (
        np.mean(covered) >= 0.8
    )  # two standard errors of 20 intervals are 0.1, and 99 resamples cost a little


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
        tuple(table): accuracy_drop_upper95(*paired(table[0], table[1], n))
        for table in np.unique(tables, axis=0)
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


@pytest.mark.parametrize("lost, won, n", [table for table in TABLES if table[0]])
def test_the_larger_the_limit_the_less_speaks_against_a_candidate(lost: int, won: int, n: int) -> None:
    p_values = [exceeds_drop_p(*paired(lost, won, n), limit) for limit in np.linspace(0, 1, 101)]
    assert p_values == sorted(p_values) and p_values[-1] == 1 and 0 < p_values[0] < 1


@pytest.mark.parametrize("lost, won, n", [table for table in TABLES if not table[0]])
def test_nothing_speaks_against_a_candidate_that_loses_nothing(lost: int, won: int, n: int) -> None:
    assert {exceeds_drop_p(*paired(lost, won, n), limit) for limit in np.linspace(0, 1, 101)} == {1.0}


def test_a_larger_loss_speaks_more_against_a_candidate() -> None:
    p_values = [exceeds_drop_p(*paired(lost, 5, 400), 0.01) for lost in range(5, 60)]
    assert p_values == sorted(p_values, reverse=True) and p_values[0] > 0.5 and p_values[-1] < 1e-6


@pytest.mark.parametrize("n", [64, 400, 1600])
@pytest.mark.parametrize(
    "limit, differing",
    [(0.0, 0.05), (0.0, 0.3), (0.005, 0.02), (0.005, 0.1), (0.02, 0.05), (0.02, 0.2), (0.1, 0.15)],
)
def test_a_drop_of_the_limit_is_rarely_called_larger(limit: float, differing: float, n: int) -> None:
    """Of 4,000 simulated candidates that lose exactly the limit, 6 % or fewer are said, at 5 %, to lose
    more."""
    lost, won = (differing + limit) / 2, (differing - limit) / 2
    tables = np.random.default_rng(0).multinomial(n, [lost, won, 1 - differing], size=4000)
    p = {
        tuple(table): exceeds_drop_p(*paired(table[0], table[1], n), limit)
        for table in np.unique(tables, axis=0)
    }
    assert np.mean([p[tuple(table)] < 0.05 for table in tables]) <= 0.06


def compared(lost: int, won: int, n: int, detectable: float = 0.005, tests: int = 1) -> Comparison:
    """A model against another one, of whose right answers it loses and wins so many."""
    labels = np.arange(n) % 2
    other, logits = (np.eye(2)[np.where(right, labels, 1 - labels)] for right in paired(lost, won, n))
    return compare("accuracy", other, logits, labels, detectable, tests=tests)


@pytest.mark.parametrize("tests", [1, 11])
@pytest.mark.parametrize("lost, won, n", TABLES)
def test_p_is_exact_mcnemars_or_that_of_the_interval(lost: int, won: int, n: int, tests: int) -> None:
    comparison = compared(lost, won, n, tests=tests)
    exact = stats.binomtest(won, lost + won, 0.5).pvalue if lost + won else 1.0
    low, high = accuracy_drop_ci95(*paired(lost, won, n))
    wald = 2 * stats.norm.sf(abs(low + high) / (high - low) * stats.norm.ppf(0.975))
    assert comparison.p == pytest.approx(min(1, tests * max(exact, wald)), rel=1e-9)
    assert (comparison.n, comparison.difference) == (n, pytest.approx((won - lost) / n, abs=1e-12))
    wider = z_of(1 - 0.05 / tests) / z_of(0.95)
    assert comparison.high - comparison.low == pytest.approx(wider * (high - low))


@properties
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3000), st.integers(1, 300))
def test_an_interval_never_contradicts_the_verdict_beside_it(
    lost: int, won: int, same: int, tests: int
) -> None:
    """Worse or better exactly where the interval leaves out 0, and on the side that the verdict names."""
    comparison = compared(lost, won, max(lost + won + same, 1), tests=tests)
    said = verdict(comparison)
    assert (said == "worse") == (comparison.high < 0) and (said == "better") == (comparison.low > 0)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "accuracy"])
@pytest.mark.parametrize("tests", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_intervals_of_other_metrics_do_not_contradict_either(metric: str, tests: int) -> None:
    said_so = set()
    for seed in range(6):
        one, other, labels = answered(metric, 80, 0.5 * seed, seed)
        comparison = compare(metric, one, other, labels, resamples=99, tests=tests)
        said = verdict(comparison)
        assert (said == "worse") == (comparison.high < 0) and (said == "better") == (comparison.low > 0)
        said_so.add(said)
    assert "worse" in said_so  # 99 swaps show a p of 2 % at the least: 40 times as much would never be one


@pytest.mark.parametrize("lost, won, n", TABLES)
def test_a_comparison_the_other_way_round(lost: int, won: int, n: int) -> None:
    one, other = compared(lost, won, n), compared(won, lost, n)
    assert (one.p, one.needed) == pytest.approx((other.p, other.needed)) or one.needed is other.needed is None
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))


@pytest.mark.parametrize("lost, won, n", [(40, 27, 1600), (13, 5, 500), (10, 10, 200), (300, 250, 5463)])
def test_needed_is_statsmodels_of_the_paired_differences(lost: int, won: int, n: int) -> None:
    needed = compared(lost, won, n).needed
    assert needed is not None
    differences = np.repeat([-1.0, 1.0, 0.0], [lost, won, n - lost - won])
    effect = 0.005 / differences.std(ddof=1)
    power = [TTestPower().power(effect, nobs, 0.05) for nobs in (needed - 1, needed)]
    assert power[0] < 0.8 <= power[1]
    closed = ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / effect) ** 2
    assert needed == pytest.approx(closed, rel=0.01)


def test_needed_where_nearly_nothing_differs_is_that_of_a_model_which_only_loses() -> None:
    """With 1 of 1,600 that differs, 0.5 points cannot be seen in fewer than the 1,200 that show six lost
    ones."""
    effect = 0.005 / math.sqrt(0.005 * 0.995)
    expected = math.ceil(TTestPower().solve_power(effect, alpha=0.05, power=0.8))
    assert compared(1, 0, 1600).needed == compared(0, 2, 1600).needed == expected > 1200


@pytest.mark.slow
@pytest.mark.parametrize("differing", [0.03, 0.1, 0.3])
def test_needed_gives_80_percent_power(differing: float) -> None:
    """Of 1,000 simulated comparisons of as many examples as needed, McNemar sees 2 points in about 80 %."""
    detectable = 0.02
    lost, won = (differing + detectable) / 2, (differing - detectable) / 2
    pilot = compared(round(10_000 * lost), round(10_000 * won), 10_000, detectable)
    assert pilot.needed is not None
    tables = np.random.default_rng(0).multinomial(pilot.needed, [lost, won, 1 - differing], size=1000)
    p_values = {tuple(table): compared(*table[:2], pilot.needed).p for table in np.unique(tables, axis=0)}
    assert (
        0.72 <= np.mean([p_values[tuple(table)] < 0.05 for table in tables]) <= 0.85
    )  # the exact test is a little shy


@pytest.mark.parametrize("metric", list(METRICS))
def test_the_same_answers(metric: str) -> None:
    _, logits, labels = answered(metric, 50, 0.5, seed=3)
    comparison = compare(metric, logits, logits, labels, resamples=19)
    assert (comparison.difference, comparison.p, comparison.needed) == (0, 1, None)
    assert comparison.low <= 0 <= comparison.high
    assert verdict(comparison) == "the same answers"


def test_other_wrong_answers_are_not_the_same_answers() -> None:
    labels = np.zeros(30, dtype=int)
    comparison = compare("accuracy", np.eye(3)[labels + 1], np.eye(3)[labels + 2], labels)
    assert comparison.p == 1 and comparison.difference == 0 and comparison.needed is not None
    assert verdict(comparison).startswith("not distinguishable")


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "accuracy"])
def test_swapped_pairs(metric: str) -> None:
    reference, logits, labels = answered(metric, 150, 1.5, seed=0)
    comparison = compare(metric, reference, logits, labels, resamples=99)
    assert comparison == compare(metric, reference, logits, labels, resamples=99)
    assert (
        comparison.difference
        == METRICS[metric].total(logits, labels) - METRICS[metric].total(reference, labels)
        < 0
    )
    assert comparison.low < comparison.difference < comparison.high < 0
    assert comparison.p < 2 / 100  # the least that 99 swaps can give: beyond it, the interval's own
    assert comparison.needed is not None and verdict(comparison) == "worse"
    again = compare(metric, logits, reference, labels, resamples=99)
    assert (again.difference, again.low, again.high) == pytest.approx(
        (-comparison.difference, -comparison.high, -comparison.low)
    )
    assert verdict(again) == "better"


@pytest.mark.slow
def test_swapped_pairs_of_equals_are_rarely_called_different() -> None:
    p_values = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = random.normal(size=100)
        one, other = (labels[:, None] + random.normal(size=(100, 1)) for _ in range(2))
        p_values.append(compare("pearson", one, other, labels, resamples=99).p)
    assert np.mean(np.array(p_values) < 0.05) <= 0.12  # two standard errors of 40 trials at 5 % are 0.07


def test_four_pairs_swapped_in_every_way() -> None:
    """So few are not resampled but enumerated: p is a whole number of sixteenths."""
    reference, logits, labels = answered("pearson", 4, 0.7, seed=0)
    p = compare("pearson", reference, logits, labels).p
    assert (16 * p) % 1 == pytest.approx(0) and p > 0.1


def test_needed_of_a_correlation_shrinks_with_its_interval() -> None:
    needed = [
        compare("pearson", *answered("pearson", 400, noise, 0), resamples=99).needed
        for noise in (0.05, 0.2, 1)
    ]
    assert None not in needed and needed == sorted(needed, key=lambda n: n or 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_nan_is_a_wrong_answer(metric: str, bad: float) -> None:
    labels = np.arange(60) % 2
    right = np.eye(2)[labels]
    logits, wrong = right.copy(), right.copy()
    logits[:20, 1] = bad
    wrong[:20] = 1 - wrong[:20]
    assert compare(metric, right, logits, labels, resamples=19) == compare(
        metric, right, wrong, labels, resamples=19
    )
    assert compare(metric, logits, logits, labels, resamples=19).needed is None


@pytest.mark.parametrize("metric", ["pearson", "spearmanr"])
def test_a_regression_with_nan_has_no_numbers(metric: str) -> None:
    reference, logits, labels = answered(metric, 60, 0.5, seed=0)
    logits[3] = math.nan
    comparison = compare(metric, reference, logits, labels)
    assert (
        np.isnan([comparison.difference, comparison.low, comparison.high, comparison.p]).all()
        and comparison.needed is None
    )
    assert verdict(comparison) == "no test with n = 60: NaN or infinite scores"


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_examples(metric: str, n: int) -> None:
    reference, logits, labels = answered(metric, n, 3.0, seed=1)
    comparison = compare(metric, reference, logits, labels, resamples=19)
    assert math.isnan(comparison.p) == (n < 3 and metric != "accuracy")
    if math.isnan(comparison.p):
        assert verdict(comparison) == f"no test with n = {n}: too few examples"


@pytest.mark.parametrize(
    "shapes", [((3, 2), (3, 2), (4,)), ((3, 2), (4, 2), (3,)), ((3, 2), (3, 3), (3,)), ((0, 2), (0, 2), (0,))]
)
def test_arrays_that_do_not_pair_up(shapes: tuple[tuple[int, ...], ...]) -> None:
    other, logits, labels = (np.zeros(shape, dtype=int) for shape in shapes)
    with pytest.raises(ValueError, match="do not pair up"):
        compare("accuracy", other, logits, labels)


@pytest.mark.parametrize("detectable", [0.0, 1.0, -0.1, 5])
def test_the_detectable_difference_is_a_fraction(detectable: float) -> None:
    with pytest.raises(
        ValueError, match=f"detectable must be between 0 and 1, a fraction of the metric, got {detectable}"
    ):
        compared(1, 2, 10, detectable)


def test_verdicts() -> None:
    shown = Comparison(n=1600, difference=-0.002, low=-0.01, high=0.006, p=0.6, needed=5347)
    assert verdict(shown) == "not distinguishable with n = 1,600; needs about n = 5,400 to see 0.5 points"
    assert verdict(replace(shown, n=5463)) == "not distinguishable with n = 5,463, enough to see 0.5 points"
    assert verdict(replace(shown, p=0.049)) == "worse"
    assert verdict(replace(shown, difference=0.002, p=0.049)) == "better"
    assert verdict(replace(shown, needed=7), detectable=0.1).endswith("enough to see 10 points")
    assert verdict(replace(shown, n=3, needed=7)).endswith("needs about n = 7 to see 0.5 points")
