"""AdaRound: learns for each weight whether it is rounded up or down, so that the outputs change least.

Nagel et al. 2020, arXiv 2004.10568; defaults of Bondarenko's code (transformer-quantization).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.calibration.moments import Drawn, draw
from quantlab.config.checks import above, at_least, one_of, share, whole
from quantlab.rounding.in_order import InOrder, Rows

STRETCH, SHIFT = 1.2, -0.1  # h reaches 0 and 1 for finite V (eq. 23)


@dataclass(frozen=True, kw_only=True)
class AdaRound(InOrder):
    """AdaRound (:func:`learn_rounding`).

    The loss is the outputs' squared error, summed over outputs and averaged over ``batch_rows`` rows, plus
    ``regularization * sum(1 - |2h - 1|^beta)``, which pushes h to 0 or 1 (eq. 24). ``beta`` falls along a
    cosine; the regularization begins after ``warm_up``, a share of the iterations. A row is a token (the
    paper's is a picture), of which ``rows`` are drawn from the calibration rows. Outputs are those of the
    Linear; the paper's are behind the activation function. ``inputs``: ``quantized`` as in the paper, or
    ``fp32``; targets are the original network's outputs.
    """

    inputs: str = "quantized"
    iterations: int = 1000
    learning_rate: float = 1e-3
    rows: int = 4096
    batch_rows: int = 32
    regularization: float = 0.01
    beta_start: float = 20.0
    beta_end: float = 2.0
    warm_up: float = 0.2
    seed: int = 0

    compares = True

    def __post_init__(self) -> None:
        one_of("rounding.inputs", self.inputs, ("fp32", "quantized"))
        whole("rounding.iterations", self.iterations, 0)
        whole("rounding.seed", self.seed, 0)
        for name in ("rows", "batch_rows"):
            whole(f"rounding.{name}", getattr(self, name), 1)
        for name in ("learning_rate", "beta_start", "beta_end"):
            above(f"rounding.{name}", getattr(self, name), 0)
        at_least("rounding.regularization", self.regularization, 0)
        share("rounding.warm_up", self.warm_up)

    @property
    def behind_fp32(self) -> bool:
        return self.inputs == "fp32"

    def statistic(self, batch: int, *x: Tensor) -> Drawn:
        return draw(self.rows, self.seed, batch, *x)

    def rounder(self, seen: Drawn) -> Callable[[Rows], Tensor]:
        original, read = seen.tensors
        return lambda rows: learn_rounding(rows, read, original @ rows.weight.T, self)

    def beta(self, iteration: int) -> float | None:
        """The exponent at an iteration; None during the warm-up."""
        first = self.warm_up * self.iterations
        if iteration < first:
            return None
        done = (iteration - first) / (self.iterations - first)
        return self.beta_end + (self.beta_start - self.beta_end) * (1 + math.cos(math.pi * done)) / 2


def learn_rounding(rows: Rows, inputs: Tensor, targets: Tensor, settings: AdaRound) -> Tensor:
    """The integers of a weight's rows, as whole numbers in FP32.

    ``inputs`` (samples, channels) are what the quantized network's Linear reads, ``targets`` (samples,
    outputs) what the original one makes of its own inputs, without bias. It starts at the nearest integers,
    which are the result of no iterations.
    """
    steps = rows.weight * rows.scale.reciprocal()
    below = steps.floor()
    v = _inverse(steps - below).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=settings.learning_rate)
    drawn = torch.Generator().manual_seed(settings.seed)

    def integers(h: Tensor) -> Tensor:
        return (below + h + rows.zero_point).clamp(rows.grid.q_min, rows.grid.q_max)

    with torch.enable_grad():
        for iteration in range(settings.iterations):
            some = torch.randint(len(inputs), (settings.batch_rows,), generator=drawn)
            h = up(v)
            error = inputs[some] @ rows.values(integers(h)).T - targets[some]
            loss = error.square().sum(1).mean()
            if (beta := settings.beta(iteration)) is not None:
                loss = loss + settings.regularization * (1 - (2 * h - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return integers((up(v.detach()) >= 0.5).float()) if settings.iterations else rows.nearest


def up(v: Tensor) -> Tensor:
    """``h = clip(1.2 sigmoid(V) - 0.1, 0, 1)``: how far a weight is rounded up (eq. 23)."""
    return (torch.sigmoid(v) * STRETCH + SHIFT).clamp(0, 1)


def _inverse(h: Tensor) -> Tensor:
    """The V whose ``h`` this is, for h in [0, 1)."""
    return -torch.log(STRETCH / (h - SHIFT) - 1)
