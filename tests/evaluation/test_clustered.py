"""Paired intervals of perplexity ratios and of clusters: against scipy, and in a simulation."""

import math

import numpy as np
import pytest
import scipy

from quantlab.evaluation.clustered import ratio_of_sums
from quantlab.evaluation.significance import accuracy_drop_ci95, compare, ratio_ci95, verdict


def windows(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.stack([nll, tokens, tokens], axis=1)


def test_with_equal_windows_the_interval_is_that_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    fp32, more = random.normal(1800, 90, 12), random.normal(20, 8, 12)
    tokens = np.full(12, 511.0)
    found = ratio_ci95("perplexity", windows(fp32, tokens), windows(fp32 + more, tokens))
    expected = scipy.stats.ttest_1samp(more / 511, 0).confidence_interval(0.95)
    assert found == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    comparison = compare("perplexity", windows(fp32, tokens), windows(fp32 + more, tokens), np.zeros(12))
    assert comparison.difference == pytest.approx(1 - math.exp(more.sum() / tokens.sum()))
    assert (comparison.low, comparison.high) == pytest.approx((1 - found[1], 1 - found[0]))
    assert comparison.p == pytest.approx(scipy.stats.ttest_1samp(more, 0).pvalue)
    assert verdict(comparison) == "worse"


def test_intervals_over_clusters_cover_the_truth() -> None:
    """Windows of a document are alike: the interval over documents covers, the one over windows does not."""
    random = np.random.default_rng(1)
    documents, covered = 20, {"documents": 0, "windows": 0}
    for _ in range(300):
        sizes = random.integers(1, 12, documents)
        clusters = np.repeat(np.arange(documents), sizes)
        tokens = random.integers(80, 120, len(clusters)).astype(float)
        rise = (0.02 + 0.01 * random.normal(size=documents))[clusters]
        more = tokens * (rise + 0.002 * random.normal(size=len(clusters)))
        fp32 = windows(3 * tokens, tokens)
        for name, groups in (("documents", clusters), ("windows", None)):
            low, high = ratio_ci95("perplexity", fp32, windows(3 * tokens + more, tokens), groups)
            covered[name] += low <= math.exp(0.02) <= high
    assert 0.90 <= covered["documents"] / 300 <= 0.99 and covered["windows"] / 300 < 0.75


def test_clusters_of_one_are_units() -> None:
    random = np.random.default_rng(2)
    above, below = random.normal(size=9), random.uniform(1, 2, 9)
    alone, named = (ratio_of_sums(above, below, each) for each in (None, np.arange(9)[::-1]))
    assert (alone.centre, alone.error) == pytest.approx((named.centre, named.error))


def test_answers_repeated_in_clusters_tell_no_more_than_once() -> None:
    random = np.random.default_rng(3)
    before, after = random.random(40) < 0.8, random.random(40) < 0.6
    once = accuracy_drop_ci95(before, after, np.arange(40))
    repeated = accuracy_drop_ci95(np.repeat(before, 5), np.repeat(after, 5), np.repeat(np.arange(40), 5))
    assert repeated == pytest.approx(once)


def test_one_window_gives_no_interval() -> None:
    one = windows(np.array([5.0]), np.array([3.0]))
    assert all(map(math.isnan, ratio_ci95("perplexity", one, one)))
    assert verdict(compare("perplexity", one, one, np.zeros(1))).startswith("no test with n = 1")
