"""What rank correlations of sensitivity scores are worth on few examples."""

import numpy as np
import pytest
from scipy import stats

from quantlab.evaluation.significance import accuracy_drop_error, spearman_ci95
from quantlab.sensitivity import caution


def losses_of(true: np.ndarray, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses in points of variables that turn so many right answers wrong, and their errors, on drawn
    rows."""
    random = np.random.default_rng(seed)
    base = random.random(rows) < 0.9
    right = [base & (random.random(rows) >= share) for share in true]
    found = [(base.mean() - one.mean(), accuracy_drop_error(base, one)) for one in right]
    return tuple(100 * np.array(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


TRUE = np.linspace(0, 0.03, 80)


def test_a_hundred_rows_are_too_few_and_it_says_how_many_are_enough() -> None:
    said = caution(*losses_of(TRUE, 100), rows=100)
    assert "Too few examples" in said and "needs about" in said
    needed = int(said.split("needs about ")[1].split(" rows")[0].replace(",", ""))
    losses, errors = losses_of(TRUE, needed, seed=1)
    assert np.mean(errors**2) / np.var(losses, ddof=1) == pytest.approx(0.2, abs=0.1)
    assert "Too few" not in caution(*losses_of(TRUE, 10_000), rows=10_000)


def test_where_only_chance_tells_variables_apart_correlations_say_nothing() -> None:
    said = [caution(*losses_of(np.full(80, 0.02), 100, seed), rows=100) for seed in range(20)]
    assert all("Too few examples" in one for one in said) and any(
        "no more than by chance" in one for one in said
    )


def test_what_is_not_known_is_said() -> None:
    assert "is not known: this metric has no errors" in caution(np.arange(3.0), np.full(3, np.nan), rows=9)
    assert "is not known: the losses do not differ" in caution(np.zeros(3), np.zeros(3), rows=9)


def test_the_interval_of_a_rank_correlation_covers() -> None:
    random, held = np.random.default_rng(0), []
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of normal pairs whose Pearson's is 0.6
    for _ in range(300):
        one, other = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=40).T
        r, low, high = spearman_ci95(one, other)
        assert low < r < high and r == pytest.approx(stats.spearmanr(one, other).statistic)
        held.append(low <= true <= high)
    assert np.mean(held) >= 0.92


RISING = np.arange(9.0)


@pytest.mark.parametrize(
    "one, other, r",
    [
        (RISING, RISING, 1.0),
        (RISING, -RISING, -1.0),
        (0 * RISING, RISING, np.nan),
        (RISING[:3], RISING[:3], np.nan),
    ],
)
def test_rank_correlations_at_their_ends(one: np.ndarray, other: np.ndarray, r: float) -> None:
    assert spearman_ci95(one, other) == pytest.approx((r, r, r), abs=1e-4, nan_ok=True)
