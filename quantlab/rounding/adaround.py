"""AdaRound: learns for each weight whether it is rounded up or down, so that the outputs change least.

Nagel et al. 2020, arXiv 2004.10568; defaults of Bondarenko's code (transformer-quantization).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.quant.grid import AffineGrid

STRETCH, SHIFT = 1.2, -0.1  # h reaches 0 and 1 for finite V (eq. 23)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How roundings are learned.

    The loss is the outputs' squared error, summed over outputs and averaged over rows, plus
    ``regularization * sum(1 - |2h - 1|^beta)``, which pushes h to 0 or 1 (eq. 24). ``beta`` falls along a
    cosine; the regularization begins after ``warm_up``, a share of the iterations.
    """

    iterations: int = 1000
    learning_rate: float = 1e-3
    rows: int = 32  # of one iteration's loss
    regularization: float = 0.01
    beta: tuple[float, float] = (20.0, 2.0)
    warm_up: float = 0.2
    seed: int = 0

    def beta_at(self, iteration: int) -> float | None:
        """The exponent at an iteration; None during the warm-up."""
        first = self.warm_up * self.iterations
        if iteration < first:
            return None
        start, end = self.beta
        done = (iteration - first) / (self.iterations - first)
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def learn_rounding(
    weight: Tensor,
    inputs: Tensor,
    targets: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    grid: AffineGrid,
    learning: Learning,
) -> Tensor:
    """The integers of a weight (outputs, channels), as whole numbers in FP32.

    ``inputs`` (rows, channels) are what the quantized network's Linear reads, ``targets`` (rows, outputs)
    what the original one makes of its own inputs, without bias. ``scale`` and ``zero_point`` broadcast
    against the weight. Starts at the integers nearest to the weight, which are the result of no iterations.
    """
    nearest = grid.integers(weight, scale, zero_point)
    steps = weight * scale.reciprocal()
    below = steps.floor()
    v = _inverse(steps - below).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=learning.learning_rate)
    drawn = torch.Generator().manual_seed(learning.seed)

    def integers(h: Tensor) -> Tensor:
        return (below + h + zero_point).clamp(grid.q_min, grid.q_max)

    with torch.enable_grad():
        for iteration in range(learning.iterations):
            rows = torch.randint(len(inputs), (learning.rows,), generator=drawn)
            h = up(v)
            error = inputs[rows] @ ((integers(h) - zero_point) * scale).T - targets[rows]
            loss = error.square().sum(1).mean()
            if (beta := learning.beta_at(iteration)) is not None:
                loss = loss + learning.regularization * (1 - (2 * h - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return integers((up(v.detach()) >= 0.5).float()) if learning.iterations else nearest


def up(v: Tensor) -> Tensor:
    """``h = clip(1.2 sigmoid(V) - 0.1, 0, 1)``: how far a weight is rounded up (eq. 23)."""
    return (torch.sigmoid(v) * STRETCH + SHIFT).clamp(0, 1)


def _inverse(h: Tensor) -> Tensor:
    """The V whose ``h`` this is, for h in [0, 1)."""
    return -torch.log(STRETCH / (h - SHIFT) - 1)
