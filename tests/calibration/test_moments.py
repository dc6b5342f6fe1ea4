"""Sums over rows: parts add up to the whole, samples are seeded, large numbers leave room for small ones."""

import numpy as np
import torch
from properties import heavy_tailed
from torch import Tensor

from quantlab.calibration.moments import draw, moments, paired_moments, token_extremes

X, SEEN = heavy_tailed(40, 6), heavy_tailed(40, 6, seed=1)
PARTS = (slice(0, 7), slice(7, 8), slice(8, 40))


def added(*parts: object) -> object:
    return sum(parts[1:], start=parts[0])  # type: ignore[call-overload]


def test_moments_of_parts_add_up() -> None:
    whole, parts = moments(X), added(*(moments(X[part]) for part in PARTS))
    assert parts.count == whole.count == 40  # type: ignore[attr-defined]
    assert torch.allclose(parts.gram, whole.gram)  # type: ignore[attr-defined]
    assert np.allclose(whole.gram.numpy(), X.double().numpy().T @ X.double().numpy())
    assert torch.allclose(whole.total, X.double().sum(0))


def test_paired_moments() -> None:
    whole, parts = paired_moments(X, SEEN), added(*(paired_moments(X[part], SEEN[part]) for part in PARTS))
    x, seen = X.double().numpy(), SEEN.double().numpy()
    assert np.allclose(whole.moved.numpy(), (x - seen).T @ seen)
    assert torch.allclose(parts.moved, whole.moved)  # type: ignore[attr-defined]
    assert torch.equal(whole.original, X.double().sum(0))
    assert torch.equal(whole.seen.gram, moments(SEEN).gram)
    assert not paired_moments(X, X).moved.any()


def test_small_rows_count_beside_huge_ones() -> None:
    small = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    huge = torch.full((1, 3), 1e6)
    left = moments(torch.cat([huge, small])).gram - moments(huge).gram
    assert torch.allclose(left, moments(small).gram, rtol=1e-3, atol=1e-2)


def rows(most: int, seed: int = 0, order: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    drawn = added(*(draw(most, seed, part, X[PARTS[part]], SEEN[PARTS[part]]) for part in order))
    x, seen = drawn.tensors  # type: ignore[attr-defined]
    both = {tuple(row.tolist()): index for index, row in enumerate(X)}
    picked = [both[tuple(row.tolist())] for row in x]
    assert torch.equal(seen, SEEN[picked])  # rows of the two stay together
    return torch.tensor(picked)


def test_a_sample_is_seeded_and_without_repetition() -> None:
    assert len(set(rows(10).tolist())) == 10
    assert torch.equal(rows(10), rows(10))
    assert torch.equal(rows(10), rows(10, order=(2, 0, 1)))
    assert not torch.equal(rows(10), rows(10, seed=1))
    assert sorted(rows(100).tolist()) == list(range(40))
    assert torch.equal(rows(5), rows(10)[:5])


def test_every_row_is_as_likely() -> None:
    counts = torch.zeros(40)
    for seed in range(400):
        counts[rows(10, seed)] += 1
    assert counts.min() > 60 and counts.max() < 140  # 100 each; five standard deviations are 43


def test_token_extremes_are_in_the_order_of_tokens() -> None:
    found = added(*(token_extremes(X[part]) for part in PARTS))
    assert torch.equal(found.lo, X.amin(1)) and torch.equal(found.hi, X.amax(1))  # type: ignore[attr-defined]
