"""A quantizer whose ranges are learned: LSQ and LSQ+ (Esser et al. 2020, arXiv 1902.08153; Bhalgat et al.
2020, arXiv 2004.09576).

What is learned is the logarithm of a scale's change (as the thresholds of Jain et al. 2020, arXiv
1903.08066), so that it stays positive and a step of Adam is a share of it, and the zero point's shift as a
share of the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlab.quant.grid import AffineGrid


class LearnedRange(nn.Module):
    """The scale and the float zero point of ranges, shape (ranges,), that begin at given ones.

    ``factor``: whether gradients are divided by sqrt(N Q), with N elements a range and Q the largest integer,
    as LSQ has them; Bondarenko et al. 2021 have not.
    """

    def __init__(self, grid: AffineGrid, scale: Tensor, zero_point: Tensor, factor: bool) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.first_scale, self.first_zero_point = scale, zero_point
        self.growth = nn.Parameter(torch.zeros_like(scale))
        self.shift = None if grid.symmetric else nn.Parameter(torch.zeros_like(zero_point))

    @property
    def scale(self) -> Tensor:
        """Above zero."""
        return self.first_scale * self.growth.exp()

    @property
    def zero_point(self) -> Tensor:
        """In the grid, as a float."""
        if self.shift is None:
            return self.first_zero_point
        return (self.first_zero_point + self.shift * self.grid.q_max).clamp(0, self.grid.q_max)

    def snap(self, x: Tensor, shape: tuple[int, ...], groups: Tensor | None = None) -> Tensor:
        """Quantizes and dequantizes ``x``, with a gradient to ``x``, scale and zero point.

        Ranges have this ``shape`` against ``x`` where each of ``groups`` (channels,), or each range in turn,
        has its own.
        """
        parts = (self.scale, self.zero_point)
        scale, zero_point = ((one if groups is None else one[groups]).reshape(shape) for one in parts)
        factor = (self.scale.numel() / x.numel() / self.grid.q_max) ** 0.5 if self.factor else 1.0
        return snap(x, scale, zero_point, self.grid.q_min, self.grid.q_max, factor)

    def ends(self) -> tuple[Tensor, Tensor]:
        """The learned ranges ``(lo, hi)``, with the zero point rounded."""
        scale, zero_point = self.scale.detach(), self.zero_point.detach().round()
        return (self.grid.q_min - zero_point) * scale, (self.grid.q_max - zero_point) * scale

    @property
    def moved(self) -> bool:
        """Whether anything has been learned."""
        return any(bool(each.detach().any()) for each in (self.growth, self.shift) if each is not None)


def snap(
    x: Tensor, scale: Tensor, zero_point: Tensor, q_min: float, q_max: float, factor: float = 1.0
) -> Tensor:
    """``s (clamp(round(x / s) + round(z), q_min, q_max) - round(z))``, to the bit :meth:`AffineGrid.snap`.

    The gradient rounds straight through (LSQ+, equations 6 to 8): to ``x`` it is 1 inside the grid and 0
    outside; to the scale round(x/s) - x/s inside and q - z outside; to the zero point 0 inside and -s
    outside. The last two are summed over the elements that share them, times ``factor``.
    """
    snapped: Tensor = _Snap.apply(x, scale, zero_point, q_min, q_max, factor)  # type: ignore[no-untyped-call]
    return snapped


class _Snap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, q_min: float, q_max: float, factor: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = q_min, q_max, factor
        z = zero_point.round()
        q = (x * scale.reciprocal()).round_().add_(z).clamp_(q_min, q_max)
        return q.sub_(z).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        q_min, q_max, factor = ctx.settings
        z = zero_point.round()
        steps = x * scale.reciprocal()
        nearest = steps.round() + z
        q = nearest.clamp(q_min, q_max)
        inside = q == nearest
        to_scale = to_zero_point = None
        if ctx.needs_input_grad[1]:
            error = torch.where(inside, nearest - z - steps, q - z)
            to_scale = (gradient * error).sum_to_size(scale.shape) * factor
        if ctx.needs_input_grad[2]:
            outside = gradient.masked_fill(inside, 0)
            to_zero_point = -(outside * scale).sum_to_size(zero_point.shape) * factor
        return gradient * inside, to_scale, to_zero_point, None, None, None


def straight_through(x: Tensor, snapped: Tensor) -> Tensor:
    """``snapped`` with the gradient of ``x``: for grids that have no range to learn."""
    return x + (snapped - x).detach()
