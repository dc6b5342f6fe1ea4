"""The formulas of transforms on known answers, and what each does to a planted outlier channel."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from quantlab.quant.basis import Basis, Diagonal, Hadamard
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid
from quantlab.transforms.awq import awq_scale
from quantlab.transforms.equalization import equalizing_basis
from quantlab.transforms.learned import learned_basis
from quantlab.transforms.operands import OutputError, Quantize, Readers, identity
from quantlab.transforms.os_plus import os_plus_basis, thresholds
from quantlab.transforms.outlier_suppression import gamma_of, migrated_scale
from quantlab.transforms.power_of_two import power_of_two_scale
from quantlab.transforms.smoothquant import smoothing_scale

CHANNELS, OUTLIER = 64, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(size: float = 60) -> Tensor:
    rows = random(200, CHANNELS)
    rows[:, OUTLIER] *= size
    return rows


def snap(bits: int, symmetric: bool, x: Tensor) -> Tensor:
    """x quantized by its own extremes."""
    grid = AffineGrid(bits=bits, symmetric=symmetric)
    return grid.snap(x, *grid.parameters(x.min(), x.max()))


def onto(bits: int, symmetric: bool = True) -> Quantize:
    return lambda basis: partial(snap, bits, symmetric)


def readers(bits: int = 8) -> Readers:
    weights = [random(8, CHANNELS, seed=1), random(4, CHANNELS, seed=2)]
    return Readers(weights=weights, snaps=[partial(snap, bits, True)] * 2, biased=[True, False])


def diagonal(scale: Tensor) -> Basis:
    return Diagonal(FrozenTensor(scale))


PLAIN = identity(CHANNELS)


def test_smoothing_scale() -> None:
    inputs, weights = torch.tensor([4.0, 0.0, 9.0]), torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(
        smoothing_scale(inputs, weights, 0.5), torch.tensor([2.0, 1e-5, 3 / 1e-5**0.5])
    )
    torch.testing.assert_close(smoothing_scale(inputs, weights, 1), torch.tensor([4.0, 1e-5, 9.0]))
    torch.testing.assert_close(smoothing_scale(inputs[:2], weights[:2], 0), torch.ones(2))


def test_smoothing_looks_at_all_readers() -> None:
    weights = [torch.tensor([[1.0, -3.0]]), torch.tensor([[-2.0, 0.5], [0.0, 0.0]])]
    torch.testing.assert_close(
        Readers(weights=weights, snaps=[torch.clone] * 2, biased=[True] * 2).largest, torch.tensor([2.0, 3.0])
    )


@pytest.mark.parametrize("shift", [False, True])
def test_equalized_channels_have_one_range(shift: bool) -> None:
    rows = planted() + 3 * random(CHANNELS, seed=4)
    basis = equalizing_basis(rows.amin(0), rows.amax(0), shift)
    assert basis is not None
    inside = basis.forward(rows)
    torch.testing.assert_close(inside.abs().amax(0), inside.abs().max().expand(CHANNELS))
    if shift:
        torch.testing.assert_close(inside.amin(0), -inside.amax(0))


def test_nothing_to_equalize() -> None:
    zero = torch.zeros(3)
    assert equalizing_basis(zero, zero, shift=False) is None
    dead = equalizing_basis(zero, torch.tensor([0.0, 1.0, 2.0]), shift=False)
    assert isinstance(dead, Diagonal)
    torch.testing.assert_close(dead.scale.tensor, torch.tensor([1e-3, 1.0, 2.0]))


def test_power_of_two_scale() -> None:
    largest = torch.tensor([8.0, 4.0, 3.0, 0.1, 0.0])
    assert power_of_two_scale(largest, 3).tolist() == [1, 0.5, 0.5, 0.125, 0.125]


def test_awq_is_the_best_of_its_grid() -> None:
    rows, read = planted(), readers(bits=4)
    scale, exponent = awq_scale(rows, read, steps=20)
    size = rows.abs().mean(0)
    errors = {}
    for step in range(20):
        tried = size**step if not step else size ** (step / 20)
        errors[step / 20] = OutputError(rows, read)(diagonal(tried / (tried.max() * tried.min()).sqrt()))
    assert exponent == min(errors, key=lambda r: errors[r]) > 0
    assert OutputError(rows, read)(diagonal(scale)) < OutputError(rows, read)(PLAIN) / 2


def test_awq_leaves_alone_what_it_cannot_better() -> None:
    exact = Readers(weights=readers().weights, snaps=[torch.clone] * 2, biased=[True] * 2)
    scale, exponent = awq_scale(random(50, CHANNELS).sign(), exact, steps=20)
    assert exponent == 0 and torch.equal(scale, torch.ones(CHANNELS))


def test_os_plus_shifts_to_the_middle_and_shrinks_what_sticks_out() -> None:
    rows = planted()
    rows[:, 2] += 40
    basis = os_plus_basis(rows, rows.amin(0), rows.amax(0), readers(), onto(6, symmetric=False))
    assert isinstance(basis, Diagonal) and basis.shift is not None
    torch.testing.assert_close(basis.shift.tensor, (rows.amin(0) + rows.amax(0)) / 2)
    scale = basis.scale.tensor
    assert scale[OUTLIER] > 5 and scale.min() == 1


def test_os_plus_without_a_shift() -> None:
    rows = planted()
    basis = os_plus_basis(rows, rows.amin(0), rows.amax(0), readers(), onto(6), shift=False)
    assert basis.shift is None


@pytest.mark.parametrize(
    ("largest", "count", "lowest"), [(11.0, 101, 1.0), (500.0, 1001, 1.0), (0.5, 101, 0.005)]
)
def test_thresholds(largest: float, count: int, lowest: float) -> None:
    tried = thresholds(largest)
    assert (tried[0], len(tried)) == (largest, count)
    assert tried[-1] == pytest.approx(lowest)


def test_gamma_of_norms() -> None:
    class LessOne(nn.Module):
        """A norm as Gemma's: its weight is the factor less one."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(random(CHANNELS))

        def forward(self, x: Tensor) -> Tensor:
            return x / x.square().mean(-1, keepdim=True).sqrt() * (1 + self.weight)

    layer, root, less_one = nn.LayerNorm(CHANNELS), nn.RMSNorm(CHANNELS), LessOne()
    for norm in (layer, root):
        norm.weight.data = random(CHANNELS, seed=3)
    layer.bias.data = random(CHANNELS, seed=4)
    for norm, gamma in ((layer, layer.weight), (root, root.weight), (less_one, 1 + less_one.weight)):
        torch.testing.assert_close(gamma_of(norm), gamma.data, rtol=1e-4, atol=1e-5)


def test_a_gamma_near_zero_is_guarded() -> None:
    torch.testing.assert_close(migrated_scale(torch.tensor([0.0, -1.0, 2.0])), torch.tensor([0.01, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("name", "weight_bits"),
    [("smoothquant", 8), ("os_plus", 8), ("equalization", 16), ("learned", 8), ("hadamard", 8)],
)
def test_a_planted_outlier_is_solved(name: str, weight_bits: int) -> None:
    """The error on 8 bits falls to a tenth at most. Equalization leaves the outlier to the weights."""
    rows, read = planted(), readers(weight_bits)
    lo, hi = rows.amin(0), rows.amax(0)
    made = {
        "smoothquant": lambda: diagonal(smoothing_scale(rows.abs().amax(0), read.largest, 0.5)),
        "equalization": lambda: equalizing_basis(lo, hi, shift=False),
        "os_plus": lambda: os_plus_basis(rows, lo, hi, read, onto(8)),
        "learned": lambda: learned_basis(rows, PLAIN, read, onto(8), 200, 0.05),
        "hadamard": lambda: Hadamard(FrozenTensor(random(CHANNELS).sign()), CHANNELS),
    }[name]()
    assert made is not None
    assert OutputError(rows, read, onto(8))(made) < OutputError(rows, read, onto(8))(PLAIN) / 10


def test_learning_lowers_the_error_of_its_start() -> None:
    rows, read = planted() + 2 * random(CHANNELS, seed=4), readers()
    start = Diagonal(PLAIN.scale, FrozenTensor(torch.zeros(CHANNELS)))
    learned = learned_basis(rows, start, read, onto(8), 100, 0.02)
    assert OutputError(rows, read, onto(8))(learned) < OutputError(rows, read, onto(8))(start) / 2
    assert learned.shift is not None and learned.shift != start.shift
    assert learned_basis(rows, start, read, onto(8), 0, 0.02) == start


def test_a_shift_passes_the_weights_in_fp32_where_there_is_a_bias() -> None:
    rows, read = random(20, CHANNELS), readers(bits=2)
    shift = 50 * random(CHANNELS, seed=3)
    basis = Diagonal(PLAIN.scale, FrozenTensor(shift))
    quantized = read.quantized(basis)
    outputs = read.quantized_outputs(rows, quantized, shift)
    with_bias = (rows - shift) @ quantized[0].T + shift @ read.weights[0].T
    torch.testing.assert_close(outputs[:, :8], with_bias, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(outputs[:, 8:], rows @ quantized[1].T)
