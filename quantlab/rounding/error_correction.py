"""Error correction: weights and biases that make up for the errors of the layers before, in closed form.

The weights' correction is QEP, arXiv 2504.09629, eq. 9, with its authors' defaults; the biases' is Nagel et
al. 2019, arXiv 1906.04721, section 4.2, with measured means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.calibration.moments import PairedMoments, paired_moments
from quantlab.config.checks import above, at_least, one_of
from quantlab.rounding.in_order import InOrder, Rows


@dataclass(frozen=True, kw_only=True)
class ErrorCorrection(InOrder):
    """Rounds the corrected weight (:func:`corrected_weight`) to nearest, then corrects the bias, if any.

    ``strength`` is the paper's alpha, in [0, 1]; 0 leaves weights as they are. Ranges stay those of the
    original weights. ``bias``: whether biases gain what keeps the mean of the outputs
    (:func:`bias_correction`).
    """

    strength: float = 0.5
    damping: float = 1.0
    bias: bool = True

    compares = True

    def __post_init__(self) -> None:
        at_least("rounding.strength", self.strength, 0)
        if self.strength > 1:
            raise ValueError(f"rounding.strength must be in [0, 1], got {self.strength}")
        above("rounding.damping", self.damping, 0)
        one_of("rounding.bias", self.bias, (True, False))

    def statistic(self, batch: int, *x: Tensor) -> PairedMoments:
        return paired_moments(*x)

    def rounder(self, seen: PairedMoments) -> Callable[[Rows], Tensor]:
        def choose(rows: Rows) -> Tensor:
            if self.strength == 0:
                return rows.nearest
            weight = corrected_weight(rows.weight, seen.moved, seen.seen.gram, self.strength, self.damping)
            return rows.grid.integers(weight.float(), rows.scale, rows.zero_point)

        return choose

    def bias_gain(self, seen: PairedMoments, rows: Rows, integers: Tensor) -> Tensor | None:
        if not self.bias:
            return None
        means = (total / seen.seen.count for total in (seen.original, seen.seen.total))
        return bias_correction(rows.weight, next(means), rows.values(integers), next(means))


def corrected_weight(
    weight: Tensor, moved: Tensor, gram: Tensor, strength: float = 0.5, damping: float = 1.0
) -> Tensor:
    """``W + a W D (H + lambda mean(diag H) I)^-1``, float64.

    Rows of X are a Linear's original inputs, rows of X^ its inputs in the quantized network. ``gram`` is
    ``H = X^^T X^`` and ``moved`` is ``D = (X - X^)^T X^``, both (channels, channels), float64 and of the same
    rows. ``a = 1`` without damping is the least-squares solution of ``X^ W'^T = X W^T``. Equal inputs leave
    the weight unchanged.
    """
    if not moved.any():
        return weight.double()
    damped = gram.clone()
    damped.diagonal().add_(damping * gram.diagonal().mean())
    gained: Tensor = torch.linalg.solve(damped, (weight.double() @ moved).T).T
    return weight.double() + strength * gained


def bias_correction(weight: Tensor, mean: Tensor, quantized_weight: Tensor, quantized_mean: Tensor) -> Tensor:
    """What the bias gains so that outputs keep their mean: ``E[x] W^T - E[x^] W^^T``, (outputs,), float64.

    ``mean`` and ``quantized_mean`` (channels,) are those of the original and the quantized inputs.
    """
    return weight.double() @ mean.double() - quantized_weight.double() @ quantized_mean.double()
