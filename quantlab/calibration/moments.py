"""Second moments of operands, which roundings and corrections of weights ask for.

Sums are in float64. FP32 holds 24 bits: beside one token whose norm is 25,000, as decoders have, the squares
of the others (norm 140) would keep about 9. GPTQ inverts the sums, which loses more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the rows of a tensor X, (rows, channels), in float64. Those of two parts add up."""

    count: int  # rows
    total: Tensor  # (channels,): the sum of the rows
    gram: Tensor  # (channels, channels): X^T X

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.gram + other.gram)


@dataclass(frozen=True, eq=False)
class PairedMoments:
    """Sums over the rows of X, and of X^, what a quantized network has in its place. Float64."""

    original: Tensor  # (channels,): the sum of X's rows
    seen: Moments  # of X^
    moved: Tensor  # (channels, channels): (X - X^)^T X^

    def __add__(self, other: PairedMoments) -> PairedMoments:
        return PairedMoments(self.original + other.original, self.seen + other.seen, self.moved + other.moved)


def moments(x: Tensor) -> Moments:
    """The moments of one batch, (rows, channels)."""
    x = x.double()
    return Moments(len(x), x.sum(0), x.T @ x)


def paired_moments(x: Tensor, seen: Tensor) -> PairedMoments:
    """The moments of one batch of X and of X^, both (rows, channels)."""
    x, seen = x.double(), seen.double()
    return PairedMoments(x.sum(0), moments(seen), (x - seen).T @ seen)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A sample of the rows of tensors that have as many rows each: those with the lowest priorities.

    The sample of two parts is the lowest of both, so order and number of parts make no difference once the
    rows have their priorities.
    """

    most: int
    priorities: Tensor  # (rows,), ascending
    tensors: tuple[Tensor, ...]  # each (rows, channels)

    def __add__(self, other: Drawn) -> Drawn:
        priorities = torch.cat([self.priorities, other.priorities])
        kept = torch.argsort(priorities, stable=True)[: self.most]
        both = zip(self.tensors, other.tensors, strict=True)
        return Drawn(self.most, priorities[kept], tuple(torch.cat(pair)[kept] for pair in both))


def draw(most: int, seed: int, part: int, *tensors: Tensor) -> Drawn:
    """At most ``most`` rows of the tensors, the same of each. ``part`` numbers the batch that they are
    from: rows get random priorities by it and ``seed``."""
    priorities = torch.from_numpy(np.random.default_rng([seed, part]).random(len(tensors[0])))
    kept = torch.argsort(priorities)[:most]
    return Drawn(most, priorities[kept], tuple(x[kept.to(x.device)] for x in tensors))


@dataclass(frozen=True, eq=False)
class TokenExtremes:
    """The smallest and the largest value of every row (token), in the order of the batches, (rows,) each."""

    lo: Tensor
    hi: Tensor

    def __add__(self, other: TokenExtremes) -> TokenExtremes:
        return TokenExtremes(torch.cat([self.lo, other.lo]), torch.cat([self.hi, other.hi]))


def token_extremes(x: Tensor) -> TokenExtremes:
    """The extremes of each row of one batch, (rows, channels)."""
    lo, hi = torch.aminmax(x, dim=1)
    return TokenExtremes(lo.cpu(), hi.cpu())
