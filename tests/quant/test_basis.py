"""Bases are invertible, and a product of an operand and a weight is the same in each of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from quantlab.quant.basis import KINDS, Basis, Diagonal, Hadamard, Orthogonal, Permutation
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.hadamard import hadamard, multiply_hadamard

CHANNELS = 24


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def signs(size: int) -> FrozenTensor:
    return FrozenTensor(random(size, seed=9).sign())


BASES: dict[str, Callable[[], Basis]] = {
    "diagonal": lambda: Diagonal(FrozenTensor(random(CHANNELS).exp())),
    "diagonal, shifted": lambda: Diagonal(
        FrozenTensor(random(CHANNELS).exp()), FrozenTensor(random(CHANNELS))
    ),
    "hadamard": lambda: Hadamard(signs(CHANNELS), CHANNELS),
    "hadamard, three blocks": lambda: Hadamard(signs(CHANNELS), 8),
    "orthogonal": lambda: Orthogonal(FrozenTensor(torch.linalg.qr(random(CHANNELS, CHANNELS)).Q)),
    "permutation": lambda: Permutation(FrozenTensor(torch.randperm(CHANNELS))),
}


@pytest.fixture(params=BASES)
def basis(request: pytest.FixtureRequest) -> Basis:
    return BASES[request.param]()


@pytest.mark.parametrize("shape", [(CHANNELS,), (5, CHANNELS), (2, 3, CHANNELS), (0, CHANNELS)])
def test_back_undoes_forward(basis: Basis, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    torch.testing.assert_close(basis.back(basis.forward(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.forward(basis.back(x)), x, rtol=0, atol=1e-12)


def test_products_do_not_depend_on_the_basis(basis: Basis) -> None:
    x, w = random(2, 7, CHANNELS), random(5, CHANNELS, seed=1)
    torch.testing.assert_close(basis.weight_back(basis.weight(w)), w, rtol=0, atol=1e-12)
    shift = torch.zeros(CHANNELS, dtype=x.dtype) if basis.shift is None else basis.shift.tensor
    product = basis.forward(x) @ basis.weight(w).T + shift @ w.T
    torch.testing.assert_close(product, x @ w.T, rtol=0, atol=1e-12)


def test_tensors_keep_their_dtype_and_are_not_written_to(basis: Basis) -> None:
    for dtype in (torch.float32, torch.float64):
        x, w = random(3, CHANNELS, dtype=dtype), random(5, CHANNELS, dtype=dtype)
        before = x.clone(), w.clone()
        for verb, value in (
            (basis.forward, x),
            (basis.back, x),
            (basis.weight, w),
            (basis.weight_back, w),
        ):
            assert verb(value).dtype == dtype
        assert torch.equal(x, before[0]) and torch.equal(w, before[1])


def test_bases_are_values(basis: Basis, request: pytest.FixtureRequest) -> None:
    assert basis.channels == CHANNELS and KINDS[basis.kind] is type(basis)
    other = Diagonal(FrozenTensor(torch.ones(CHANNELS)))
    assert basis == basis and hash(basis) == hash(basis) and basis != other


def test_a_scale_of_one_changes_no_bit() -> None:
    basis, x = Diagonal(FrozenTensor(torch.ones(CHANNELS))), random(4, CHANNELS, dtype=torch.float32)
    assert (
        torch.equal(basis.forward(x), x) and torch.equal(basis.back(x), x) and torch.equal(basis.weight(x), x)
    )


# Of Paley's first construction 12, 20, 24, 108, of his second 28, 36, 76; powers of two; what networks have.
@pytest.mark.parametrize(
    "size",
    [1, 2, 4, 12, 20, 24, 28, 36, 40, 60, 64, 76, 108, 128, 384, 576, 640, 768, 896, 1024, 1536, 3072],
)
def test_hadamard_matrices(size: int) -> None:
    matrix = hadamard(size)
    assert torch.equal(matrix.abs(), torch.ones_like(matrix))
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))
    x = random(3, size)
    torch.testing.assert_close(multiply_hadamard(x), x @ matrix / size**0.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "size 0 here; the nearest sizes are 1 "),
        (3, "size 3 here; the nearest sizes are 2 and 4 "),
        (92, "size 92 here; the nearest sizes are 88 and 96 "),
        (575, "size 575 here; the nearest sizes are 572 and 576 "),
    ],
)
def test_a_size_without_a_hadamard_matrix_is_refused(size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hadamard(size)


def test_a_rotation_spreads_an_outlier() -> None:
    x = torch.zeros(1, 576, dtype=torch.float64)
    x[0, 7] = 24
    torch.testing.assert_close(
        Hadamard(signs(576), 576).forward(x).abs(), torch.ones_like(x), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Diagonal(FrozenTensor([1.0, 0.0])), "one positive number a channel"),
        (lambda: Diagonal(FrozenTensor([1.0, np.nan])), "one positive number a channel"),
        (lambda: Diagonal(FrozenTensor([1.0]), FrozenTensor([0.0, 1.0])), "one finite number a channel"),
        (lambda: Hadamard(signs(24), 16), "block of 16 does not divide 24 channels"),
        (lambda: Hadamard(FrozenTensor([0.5, 1.0]), 2), "must be 1 or -1"),
        (lambda: Orthogonal(FrozenTensor(2 * torch.eye(3))), "orthonormal; it is off by 3"),
        (lambda: Orthogonal(FrozenTensor(torch.ones(2, 3))), "must be square"),
        (lambda: Permutation(FrozenTensor([0, 0, 2])), "every channel once"),
    ],
)
def test_what_is_no_basis_is_refused(make: Callable[[], Basis], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
