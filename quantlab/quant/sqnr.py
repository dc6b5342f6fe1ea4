"""How far a quantized tensor is from what it was."""

import math

from torch import Tensor


def sqnr_db(x: Tensor, x_hat: Tensor) -> float:
    """Signal-to-quantization-noise ratio, ``10 log10(sum x^2 / sum (x - x_hat)^2)``; infinite where nothing
    changed."""
    return ratio_db(energy(x), energy(x - x_hat))


def energy(x: Tensor) -> float:
    """Sum of squares, in float64."""
    return x.double().square().sum().item()


def ratio_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``; infinite without noise, minus infinite without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
