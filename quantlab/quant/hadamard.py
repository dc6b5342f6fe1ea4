"""Hadamard matrices: entries 1 and -1, orthogonal rows. A product costs two small ones.

Known here: Paley's two constructions of 1933 over prime fields (12, 20, 24, 28, 36, 44, 60, ...), and any of
them doubled any number of times (Sylvester), which gives every power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import torch
from torch import Tensor


def hadamard(size: int) -> Tensor:
    """A Hadamard matrix H of this size in float64: entries 1 and -1, ``H H^T = size I``.

    Raises ValueError where none is known here.
    """
    left, right = _factors(size)
    return torch.kron(left, right)


def has_size(size: int) -> bool:
    """Whether a Hadamard matrix of this size is known here."""
    return _core(size) is not None


def check_size(size: int) -> None:
    """Raises ValueError where no Hadamard matrix of this size is known here, with the nearest sizes."""
    if not has_size(size):
        below = next((n for n in range(size, 0, -1) if has_size(n)), None)
        above = next(n for n in count(max(size, 1)) if has_size(n))
        near = f"{above}" if below is None else f"{below} and {above}"
        raise ValueError(
            f"there is no Hadamard matrix of size {size} here; the nearest sizes are {near}"
            " (powers of two times 1, 12, 20, 28, 36 and other orders of Paley)"
        )


def multiply_hadamard(x: Tensor) -> Tensor:
    """``x H / sqrt(n)`` for the rows of x, shape (rows, n)."""
    left, right = _orthonormal_factors(x.shape[1], x.dtype, x.device)
    return _multiply(x, left, right)


def multiply_hadamard_transposed(x: Tensor) -> Tensor:
    """``x H^T / sqrt(n)`` for the rows of x, shape (rows, n): undoes :func:`multiply_hadamard`."""
    left, right = _orthonormal_factors(x.shape[1], x.dtype, x.device)
    return _multiply(x, left.T, right.T)


def _multiply(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x times the Kronecker product of ``left`` and ``right``: a row, as a matrix X, becomes L^T X R."""
    rows, size = x.shape
    folded = x.reshape(-1, len(right)) @ right
    return torch.matmul(left.T, folded.view(rows, len(left), len(right))).view(rows, size)


@lru_cache(maxsize=64)
def _orthonormal_factors(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    left, right = ((factor / len(factor) ** 0.5).to(device, dtype) for factor in _factors(size))
    return left, right


@lru_cache(maxsize=64)
def _factors(size: int) -> tuple[Tensor, Tensor]:
    """Two Hadamard matrices of near sizes whose Kronecker product has this size."""
    check_size(size)
    core = _core(size)
    assert core is not None
    left, right = _paley(core), torch.ones(1, 1, dtype=torch.float64)
    while len(left) * len(right) < size:
        if len(left) <= len(right):
            left = _doubled(left)
        else:
            right = _doubled(right)
    return left, right


def _doubled(matrix: Tensor) -> Tensor:
    return torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))


def _core(size: int) -> int | None:
    """The smallest order of :func:`_paley` that gives this size when doubled; None where there is none."""
    return next((order for order in _halves(size) if order == 1 or _prime_of(order)), None)


def _halves(size: int) -> Iterator[int]:
    """The odd part of a size, then its doubles up to the size."""
    if size > 0:
        order = size // (size & -size)
        while order <= size:
            yield order
            order *= 2


def _prime_of(order: int) -> int | None:
    """The prime q of a Paley matrix: order q + 1 for q = 3 mod 4, or order 2 (q + 1) for q = 1 mod 4."""
    if order % 4:
        return None
    candidates = (order - 1, order // 2 - 1)
    return next(
        (q for q in candidates if _is_prime(q) and order == (q + 1 if q % 4 == 3 else 2 * (q + 1))), None
    )


def _is_prime(number: int) -> bool:
    return number > 2 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _paley(order: int) -> Tensor:
    """A Hadamard matrix over the squares of a prime field (Paley 1933, constructions I and II)."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    q = _prime_of(order)
    assert q is not None, order
    numbers = torch.arange(q)
    squares = torch.full((q,), -1.0, dtype=torch.float64)
    squares[numbers * numbers % q] = 1
    squares[0] = 0
    core = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    core[1:, 1:] = squares[(numbers[:, None] - numbers) % q]
    core[0, 1:] = 1
    core[1:, 0] = -1 if q % 4 == 3 else 1
    identity = torch.eye(q + 1, dtype=torch.float64)
    if q % 4 == 3:
        return core + identity
    plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(core, plus) + torch.kron(identity, minus)
