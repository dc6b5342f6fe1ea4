"""Signal-to-quantization-noise ratio: how far a quantized tensor is from the original."""

import math

from torch import Tensor


def sqnr_db(x: Tensor, x_hat: Tensor) -> float:
    """``10 log10(sum x^2 / sum (x - x_hat)^2)`` in dB; infinite if nothing changed."""
    return ratio_db(energy(x), energy(x - x_hat))


def energy(x: Tensor) -> float:
    """Sum of squares, in float64."""
    return x.double().square().sum().item()


def ratio_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` in dB; infinite without noise, minus infinite without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
