"""Effects of settings: planted ones are found again, identities hold on any scores, intervals are scipy's."""

from itertools import permutations, product

import numpy as np
import pytest
from faked import answers
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from scipy import stats

from quantlab.sweeping.effects import (
    cell_means,
    gains,
    greedy_order,
    interactions,
    is_balanced,
    level_means,
    main_effects,
    mean_ci95,
    shapley,
    shortest,
    variance_shares,
)

seeds = st.integers(0, 2**32 - 1)


def grid(*levels: int) -> np.ndarray:
    """Codes of every combination, (trials, factors)."""
    return np.array(list(product(*map(range, levels))))


def cube(values: list[float]) -> np.ndarray:
    """A cube of one column."""
    return np.array(values, dtype=float)[:, None]


def random_cube(seed: int, changes: int, examples: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (2**changes, examples)).astype(float)


@given(seeds, st.integers(2, 200), st.floats(1e-3, 1e3))
@properties
def test_interval_is_the_normal_one(seed: int, examples: int, scale: float) -> None:
    values = scale * np.random.default_rng(seed).normal(1, 2, (3, examples))
    mean, low, high = mean_ci95(values)
    expected = stats.norm.interval(0.95, loc=values.mean(axis=1), scale=stats.sem(values, axis=1))
    np.testing.assert_allclose(
        (mean, low, high), (values.mean(axis=1), *expected), rtol=1e-9, atol=1e-9 * scale
    )


def test_interval_of_a_difference_is_the_paired_t() -> None:
    one, other = answers([0.8, 0.7], examples=5000).astype(float)
    paired = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert tuple(mean_ci95(one - other)[1:]) == pytest.approx((paired.low, paired.high), abs=1e-5)
    unpaired = stats.ttest_ind(one, other).confidence_interval(0.95)
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_no_interval_of_a_single_value() -> None:
    mean, low, high = mean_ci95(np.array([[0.5], [0.25]]))
    assert mean.tolist() == [0.5, 0.25]
    assert np.isnan([low, high]).all()


def test_planted_main_effects() -> None:
    """Without interactions, every level's effect comes back, and nothing is left over."""
    codes, a, b = grid(3, 2), np.array([0.0, 0.3, 0.6]), np.array([0.1, -0.1])
    examples = np.linspace(-1, 1, 7)
    scores = a[codes[:, 0], None] + b[codes[:, 1], None] * examples
    np.testing.assert_allclose(
        main_effects(scores, codes[:, 0]), np.tile([[-0.3], [0], [0.3]], 7), atol=1e-15
    )
    np.testing.assert_allclose(
        main_effects(scores, codes[:, 1]), [0.1 * examples, -0.1 * examples], atol=1e-15
    )
    np.testing.assert_allclose(interactions(scores, codes[:, 0], codes[:, 1]), 0, atol=1e-15)


def test_planted_interaction() -> None:
    codes = grid(2, 2)
    scores = 0.5 + 0.2 * np.where(codes[:, 0] == codes[:, 1], 1.0, -1.0)[:, None]
    np.testing.assert_allclose(interactions(scores, *codes.T)[..., 0], [[0.2, -0.2], [-0.2, 0.2]], atol=1e-15)
    assert variance_shares(scores[:, 0], codes) == pytest.approx({(0,): 0, (1,): 0, (0, 1): 1, (): 0})


def test_higher_orders_are_the_rest() -> None:
    codes = grid(2, 2, 2)
    assert variance_shares((-1.0) ** codes.sum(axis=1), codes)[()] == pytest.approx(1)


@given(seeds, st.lists(st.integers(2, 4), min_size=2, max_size=3), st.integers(1, 2))
@properties
def test_a_balanced_design_adds_up(seed: int, levels: list[int], repeats: int) -> None:
    """Effects sum to zero and rebuild the cells, shares sum to 1, and the order of the trials does not
    matter."""
    random = np.random.default_rng(seed)
    codes = random.permutation(np.tile(grid(*levels), (repeats, 1)))
    scores = random.normal(size=(len(codes), 5))
    a, b = codes[:, 0], codes[:, 1]
    assert is_balanced(codes)
    together = interactions(scores, a, b)
    for sums in (main_effects(scores, a).sum(axis=0), together.sum(axis=0), together.sum(axis=1)):
        np.testing.assert_allclose(sums, 0, atol=1e-12)
    rebuilt = scores.mean(axis=0) + main_effects(scores, a)[:, None] + main_effects(scores, b) + together
    np.testing.assert_allclose(cell_means(scores, a, b), rebuilt, atol=1e-12)
    shares = variance_shares(scores[:, 0], codes)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0


@given(seeds, st.integers(2, 5), st.integers(2, 4))
@properties
def test_share_is_that_of_the_analysis_of_variance(seed: int, levels: int, others: int) -> None:
    codes, values = grid(levels, others), np.random.default_rng(seed).normal(size=levels * others)
    f = stats.f_oneway(*(values[codes[:, 0] == level] for level in range(levels))).statistic
    between, within = levels - 1, len(values) - levels
    assert variance_shares(values, codes)[0,] == pytest.approx(f * between / (f * between + within))


def test_means_by_hand() -> None:
    scores, a, b = np.array([[1.0], [2], [3], [5]]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert level_means(scores, a).ravel().tolist() == [1.5, 4]
    assert cell_means(scores, b, a).squeeze().tolist() == [[1, 3], [2, 5]]


def test_nothing_varies() -> None:
    assert np.isnan(list(variance_shares(np.full(6, 0.1), grid(3, 2)).values())).all()


@pytest.mark.parametrize(
    ("codes", "balanced"),
    [
        (grid(2, 3), True),
        (np.tile(grid(2, 3), (3, 1)), True),
        (grid(2, 3)[1:], False),
        (np.vstack([grid(2, 3), [[0, 0]]]), False),
        (np.array([[0, 0], [1, 1]]), False),
    ],
    ids=["full", "repeated", "one missing", "one twice", "two go together"],
)
def test_is_balanced(codes: np.ndarray, balanced: bool) -> None:
    assert is_balanced(codes) is balanced


def test_greedy_takes_what_gains_most() -> None:
    """Alone, change 1 gains most; after it, change 2, which does harm alone."""
    values = np.zeros(8)
    values[[0b001, 0b010, 0b100]] = 0.2, 0.3, -0.1
    values[[0b011, 0b101, 0b110, 0b111]] = 0.4, 0.5, 0.6, 0.55
    assert greedy_order(values, range(3)) == [1, 2, 0]
    assert greedy_order(values, [0, 2]) == [0, 2]
    assert greedy_order(values, []) == []


@given(seeds, st.integers(1, 5))
@properties
def test_gains_lead_from_start_to_end(seed: int, changes: int) -> None:
    scores = random_cube(seed, changes)
    for order in (greedy_order(scores.mean(axis=1), range(changes)), range(changes)):
        steps = gains(scores, order)
        assert steps.shape == (changes, 30)
        np.testing.assert_array_equal(steps.sum(axis=0), scores[-1] - scores[0])
    first = gains(scores, greedy_order(scores.mean(axis=1), range(changes)))[0].mean()
    assert first == pytest.approx(max(scores[1 << i].mean() - scores[0].mean() for i in range(changes)))


@pytest.mark.parametrize(
    ("accuracies", "changes"),
    [
        ([0.5, 0.9, 0.5, 0.9], [0]),  # the second change does nothing
        ([0.5, 0.7, 0.8, 0.9], [1, 0]),  # both are needed
        ([0.5, 0.9, 0.92, 0.9], [1]),  # one is enough, and the second is the better one
        ([0.9, 0.5, 0.5, 0.9], []),  # the start is as good
        ([0.9, 0.5, 0.5, 0.6], []),  # the end is worse
        ([0.5, 0.95, 0.6, 0.9], [0]),  # one step is better than all
    ],
)
@pytest.mark.parametrize("examples", [1, 1000])
def test_shortest(accuracies: list[float], changes: list[int], examples: int) -> None:
    scores = cube(accuracies) if examples == 1 else answers(accuracies, examples, noise=0).astype(float)
    assert shortest(scores, 0.001) == changes


@pytest.mark.parametrize(
    ("examples", "max_drop", "changes"),
    [
        (200, 0.02, [0, 1]),
        (20_000, 0.02, [0]),
        (20_000, 0.005, [0, 1]),
        (200, 0.2, [0]),
    ],
)
def test_what_few_examples_do_not_show_is_not_as_good(
    examples: int, max_drop: float, changes: list[int]
) -> None:
    """A point behind: 200 examples cannot tell it from none, nor from more than 2 points; 20,000 can."""
    assert shortest(answers([0.5, 0.79, 0.6, 0.8], examples).astype(float), max_drop) == changes


@given(seeds, st.integers(1, 4))
@properties
def test_shapley_is_the_mean_over_all_orders(seed: int, changes: int) -> None:
    scores = random_cube(seed, changes)
    expected = np.zeros((changes, 30))
    orders = list(permutations(range(changes)))
    for order in orders:
        expected[list(order)] += gains(scores, order) / len(orders)
    np.testing.assert_allclose(shapley(scores), expected, atol=1e-12)
    np.testing.assert_allclose(shapley(scores).sum(axis=0), scores[-1] - scores[0], atol=1e-12)


def test_shapley_shares_what_only_two_together_gain() -> None:
    """Change 0 gains 0.1 by itself; 1 and 2 gain 0.4, but only together; 3 does nothing."""
    made = np.arange(16)
    values = 0.1 * (made & 1) + 0.4 * ((made & 0b110) == 0b110)
    np.testing.assert_allclose(shapley(cube(values.tolist())).ravel(), [0.1, 0.2, 0.2, 0], atol=1e-15)
