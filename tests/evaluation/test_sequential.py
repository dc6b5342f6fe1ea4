"""Confidence sequences of a finite population's mean, and verdicts that are reached with them."""

import math

import numpy as np
import pytest

from quantlab.evaluation.sequential import BETS, asymptotic_interval, bounded_interval, log_capital
from quantlab.evaluation.verdicts import SequentialTest, Verdict, require_decidable

N = 5463  # QNLI's pairs


def population(rng: np.random.Generator, size: int, differ: float, drop: float) -> np.ndarray:
    """Paired differences (size,), a share ``differ`` of them not 0, with this mean, in random order."""
    lost, won = round(size * (differ + drop) / 2), round(size * (differ - drop) / 2)
    values = np.zeros(size)
    values[:lost], values[lost : lost + won] = 1, -1
    return rng.permutation(values)


def boundary_test(
    values: np.ndarray, limit: float, relative: bool = False
) -> tuple[SequentialTest, np.ndarray]:
    """A test of a model whose rows lose ``values``, each -1, 0 or 1, and the model's outcomes."""
    labels = np.zeros(len(values), np.int64)
    right, reference_right = values <= 0, values >= 0  # where both are right, nothing is lost
    logits, reference = (np.stack([each, ~each], axis=1).astype(float) for each in (right, reference_right))
    test = SequentialTest(
        metric="accuracy", limit=limit, labels=labels, reference=reference, clusters=None, seed=0
    )
    return test, logits


def decided(test: SequentialTest, values: np.ndarray) -> Verdict:
    rows = np.empty(0, np.int64)
    for chunk in test.chunks():
        rows = np.concatenate([rows, chunk])
        if verdict := test.verdict(rows, values[rows]):
            return verdict
    raise AssertionError("no verdict after all rows")


def test_capital_is_that_of_a_fair_game() -> None:
    """Closed form: of all orders of a small population, the mean of the capital at its true mean is 1."""
    from itertools import permutations

    units = np.array([1.0, 0, -1, 1, 0])
    ends = []
    for order in permutations(units):
        capital = np.ones(len(BETS))
        for n, x in enumerate(order[:4]):
            expected = (units.sum() - sum(order[:n])) / (5 - n)
            capital *= 1 + BETS * (x - expected)
            most = log_capital(np.array(order[: n + 1]), 5, units.mean())
            assert math.exp(most) >= capital.mean() - 1e-12
        ends.append(capital.mean())
    assert np.mean(ends) == pytest.approx(1, abs=1e-12)


def test_interval_never_contradicts_what_is_known_for_certain() -> None:
    rng = np.random.default_rng(0)
    values = population(rng, 60, 0.5, 0.1)
    for n in (1, 10, 30, 59):
        low, high = bounded_interval(values[:n], 60)
        known = values[:n].sum()
        assert (known - (60 - n)) / 60 - 1e-9 <= low <= high <= (known + (60 - n)) / 60 + 1e-9
    assert bounded_interval(values[:59], 60)[0] == pytest.approx((values[:59].sum() - 1) / 60, abs=0.02)


def test_interval_of_the_opposite_is_the_opposite() -> None:
    values = population(np.random.default_rng(1), 500, 0.3, 0.1)[:200]
    low, high = bounded_interval(values, 500)
    assert bounded_interval(-values, 500) == pytest.approx((-high, -low), abs=1e-9)
    assert low < values.mean() < high


def wrong_shares(drop: float, differ: float, runs: int) -> tuple[float, float]:
    """Of models that lose just ``drop`` on all rows, the share that the bets decide before the end; and the
    share for which, after a chunk, a 95 % interval for one look leaves the drop out."""
    rng, wrong, naive = np.random.default_rng(0), 0, 0
    test, _ = boundary_test(population(rng, N, differ, drop), drop)
    looks = np.cumsum([len(chunk) for chunk in test.chunks()])[:-1]
    for _ in range(runs):
        values = population(rng, N, differ, drop)
        true = values.mean()
        capitals = [log_capital(sign * values[: looks[-1]], N, sign * true) for sign in (1, -1)]
        wrong += max(capitals) >= math.log(2 / 0.05)
        means = np.cumsum(values)[looks - 1] / looks
        errors = values.std() * np.sqrt((1 - looks / N) / looks)
        naive += bool((np.abs(means - true) > 1.96 * errors).any())
    return wrong / runs, naive / runs


@pytest.mark.parametrize("drop, differ", [(0.005, 0.02), (0.01, 0.05), (0.02, 0.1)])
def test_at_most_5_percent_of_verdicts_are_wrong(drop: float, differ: float) -> None:
    """At the limit itself every verdict before the end is an error. Those who look at each chunk with an
    interval for one look make many."""
    wrong, naive = wrong_shares(drop, differ, 400)
    assert wrong <= 0.05
    assert naive > 0.15


def test_asymptotic_interval_keeps_its_level_on_skewed_windows() -> None:
    """Windows lose a log-normal number of nats; an interval at any of the looks leaves the mean out."""
    rng, runs, size, wrong = np.random.default_rng(0), 300, 570, 0
    test = SequentialTest(
        metric="perplexity",
        limit=0.1,
        labels=np.zeros(size, np.int64),
        reference=np.ones((size, 3)),
        clusters=None,
        seed=0,
    )
    looks = np.cumsum([len(chunk) for chunk in test.chunks()])[:-1]
    for _ in range(runs):
        values = rng.lognormal(0, 0.7, size)
        ends = [asymptotic_interval(values[:n], size) for n in looks]
        wrong += any(not low <= values.mean() <= high for low, high in ends)
    assert wrong / runs <= 0.05


@pytest.mark.parametrize("drop, limit, word", [(0.0, 0.02, "keeps"), (0.1, 0.02, "loses")])
def test_clear_cases_are_decided_early(drop: float, limit: float, word: str) -> None:
    values = population(np.random.default_rng(2), N, drop + 0.03, drop)
    test, logits = boundary_test(values, limit)
    verdict = decided(test, logits)
    assert verdict.word == word
    assert len(verdict.rows) < N / 4
    assert verdict.low <= values.mean() <= verdict.high
    assert (verdict.low > limit) == (word == "loses")


def test_all_rows_give_the_exact_answer() -> None:
    values = population(np.random.default_rng(3), 100, 0.3, 0.1)
    for limit, keeps in ((0.1, True), (0.0999, False)):
        test, logits = boundary_test(values, limit)
        rows = np.arange(100)
        verdict = test.verdict(rows, logits)
        assert verdict is not None and verdict.complete and verdict.keeps == keeps
        scores = {"accuracy": 0.5, "accuracy_drop": 0.1}
        assert "accuracy" not in test.estimates(verdict, scores)


def test_chunks_are_all_rows_once_in_an_order_of_the_seed() -> None:
    test, _ = boundary_test(np.zeros(1000), 0.01)
    chunks = test.chunks()
    order = np.concatenate(chunks)
    assert sorted(order) == list(range(1000))
    assert [len(chunk) for chunk in chunks[:3]] == [64, 64, 64]
    assert np.corrcoef(order, np.arange(1000))[0, 1] < 0.1


def test_clusters_stay_whole() -> None:
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(300), rng.integers(1, 4, 300))
    values = population(rng, len(clusters), 0.3, 0.2)
    test, logits = boundary_test(values, 0.02)
    test = SequentialTest(
        metric="accuracy",
        limit=0.02,
        labels=test.labels,
        reference=test.reference,
        clusters=clusters,
        seed=0,
    )
    chunks = test.chunks()
    assert not set(clusters[chunks[0]]) & set(clusters[np.concatenate(chunks[1:])])
    verdict = decided(test, logits)
    assert verdict.word == "loses"
    assert verdict.low <= values.mean() <= verdict.high


def windows(rng: np.random.Generator, size: int, growth: float) -> tuple[np.ndarray, np.ndarray]:
    """FP32's outcomes of windows (nll, tokens, words), and those of a model of exp(growth) its perplexity."""
    tokens = np.full(size, 511.0)
    tokens[-1] = 200
    nll = rng.normal(3.5, 0.4, size) * tokens
    worse = nll + (growth + rng.normal(0, 0.02, size)) * tokens
    words = np.round(tokens / 1.3)
    return tuple(np.stack([each, tokens, words], axis=1) for each in (nll, worse))  # type: ignore[return-value]


@pytest.mark.parametrize("percent, word", [(2, "loses"), (10, "keeps")])
@pytest.mark.parametrize("metric", ["perplexity", "word_perplexity"])
def test_perplexity_is_decided_by_the_paired_ratio_of_windows(metric: str, percent: float, word: str) -> None:
    reference, values = windows(np.random.default_rng(5), 570, math.log(1.05))
    test = SequentialTest(
        metric=metric,
        limit=percent / 100,
        labels=np.zeros(570, np.int64),
        reference=reference,
        clusters=None,
        seed=1,
    )
    verdict = decided(test, values)
    assert verdict.word == word and len(verdict.rows) < 100
    column = 1 if metric == "perplexity" else 2
    ratio = math.exp((values[:, 0] - reference[:, 0]).sum() / values[:, column].sum())
    assert verdict.low <= ratio - 1 <= verdict.high
    scores = {f"{metric}_ratio": 1.05, metric: 1.0, f"{metric}_fp32": 1.0}
    found = test.estimates(verdict, scores)
    assert found[metric] == pytest.approx(1.05 * found[f"{metric}_fp32"])
    assert found["rows_answered"] == len(verdict.rows) and found["rows_selected"] == 570


@pytest.mark.parametrize("metric", ["f1", "matthews_correlation", "pearson"])
def test_scores_that_are_no_means_are_refused(metric: str) -> None:
    with pytest.raises(ValueError, match=f"{metric} is no mean over rows.*evaluation.until=all"):
        require_decidable(metric, 1.0)
