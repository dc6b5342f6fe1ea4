"""What changes of settings do to a score: main effects, interactions, shares of variance, paths and Shapley
values.

``scores`` are (trials, examples): 1.0 where a trial's answer is right. All effects are linear in them, so
each is taken for every example first, and its interval is paired over examples. A metric that is no mean over
examples comes as a single column, and its effects have no interval.
"""

from collections.abc import Iterable
from itertools import accumulate, combinations
from math import comb
from operator import or_

import numpy as np

from quantlab.evaluation.significance import Z95


def mean_ci95(values: np.ndarray) -> np.ndarray:
    """Mean, low and high end of its 95 % interval, (3, ...), over the last axis of (..., examples).

    The interval is the normal approximation, mean ± 1.96 s / sqrt(examples); NaN where there is but one
    example.
    """
    mean, examples = values.mean(axis=-1), values.shape[-1]
    error = Z95 * values.std(axis=-1, ddof=1) / np.sqrt(examples) if examples > 1 else np.nan
    return np.stack([mean, mean - error, mean + error])


def level_means(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean over the trials of each level, (levels, examples); ``codes`` (trials,) number the levels from
    0."""
    return np.stack([scores[codes == level].mean(axis=0) for level in range(codes.max() + 1)])


def main_effects(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Each level's mean less the mean of all trials, (levels, examples)."""
    return level_means(scores - scores.mean(axis=0), codes)


def cell_means(scores: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over the trials of each pair of levels, (levels of a, levels of b, examples); every pair needs a
    trial."""
    levels = b.max() + 1
    return level_means(scores, a * levels + b).reshape(-1, levels, scores.shape[1])


def interactions(scores: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What each pair of levels does beyond the sum of its main effects, (levels of a, levels of b,
    examples)."""
    rest = scores - scores.mean(axis=0) - main_effects(scores, a)[a] - main_effects(scores, b)[b]
    return cell_means(rest, a, b)


def is_balanced(codes: np.ndarray) -> bool:
    """Whether every combination of levels occurs, and all equally often; ``codes`` are (trials, factors)."""
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    return bool(len(counts) == np.prod(codes.max(axis=0) + 1) and np.ptp(counts) == 0)


def variance_shares(values: np.ndarray, codes: np.ndarray) -> dict[tuple[int, ...], float]:
    """Shares (eta²) of the variance among trials: ``(0,)`` of a factor, ``(0, 1)`` of a pair, ``()`` of the
    rest.

    ``values`` (trials,), ``codes`` (trials, factors), balanced: the shares sum to 1. All are NaN where
    nothing varies.
    """
    scores, factors = values[:, None], range(codes.shape[1])
    parts: dict[tuple[int, ...], np.ndarray] = {
        (a,): main_effects(scores, codes[:, a])[codes[:, a]] for a in factors
    }
    for a, b in combinations(factors, 2):
        parts[a, b] = interactions(scores, codes[:, a], codes[:, b])[codes[:, a], codes[:, b]]
    total = np.sum((values - values.mean()) ** 2) if np.ptp(values) else np.nan
    shares = {names: float(np.sum(part**2) / total) for names, part in parts.items()}
    return shares | {(): float(np.maximum(0, 1 - sum(shares.values())))}


def greedy_order(values: np.ndarray, changes: Iterable[int]) -> list[int]:
    """An order for the changes: each next one is that whose trial scores best.

    ``values`` (2**d,) are indexed by the set of changes made: bit i of the index says whether change i is.
    """
    order: list[int] = []
    left, made = sorted(changes), 0
    while left:
        order.append(max(left, key=lambda change: values[made | 1 << change]))
        left.remove(order[-1])
        made |= 1 << order[-1]
    return order


def gains(cube: np.ndarray, order: Iterable[int]) -> np.ndarray:
    """What each change adds when made in this order from no change on, (steps, examples); ``cube`` (2**d,
    examples)."""
    made = list(accumulate((1 << change for change in order), or_, initial=0))
    return np.diff(cube[made], axis=0)


def shortest(cube: np.ndarray, max_drop: float) -> list[int]:
    """The fewest changes, in greedy order, whose trial is as good as the one with all changes; the best of
    such sets.

    As good: it loses less than ``max_drop``, a fraction, with the whole 95 % interval of the difference,
    paired over examples (non-inferiority). Where there is no interval, the difference itself must.
    """
    behind, _, high = mean_ci95(cube[-1] - cube)
    reached = np.flatnonzero(np.fmax(behind, high) < max_drop).tolist()
    made = min(reached, key=lambda index: (index.bit_count(), behind[index]))
    return greedy_order(
        cube.mean(axis=1), (change for change in range(made.bit_length()) if made >> change & 1)
    )


def shapley(cube: np.ndarray) -> np.ndarray:
    """Each change's gain averaged over all orders of making the changes, (d, examples); ``cube`` (2**d,
    examples).

    The values sum to what all changes gain together.
    """
    made = np.arange(len(cube))
    changes = len(cube).bit_length() - 1
    weights = np.array([1 / (changes * comb(changes - 1, index.bit_count())) for index in made[:-1].tolist()])
    without = [made[made >> change & 1 == 0] for change in range(changes)]
    return np.stack([weights[w] @ (cube[w | 1 << change] - cube[w]) for change, w in enumerate(without)])
