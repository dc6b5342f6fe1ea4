"""Dynamic grids: every token has the range of its own values, so nothing is calibrated."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantlab.kernels import native
from quantlab.kernels.snapper import MIDDLE
from quantlab.kernels.tokens import TokenIntegers, snap_tokens
from quantlab.quant.grid import AffineGrid, Grid


@dataclass(frozen=True, kw_only=True)
class DynamicGrid(Grid):
    """An affine grid for every token, from the token's own extremes.

    A token is a slice of the last dimension. Symmetric: ``s_t = max|x_t| / (2^(b-1) - 1)``. Asymmetric:
    ``s_t = (max x_t - min x_t) / (2^b - 1)``, where the range is extended to include zero. So the zero point
    is one of the integers, and a product can be computed in integers. A token of zeros has scale 1. Source:
    ZeroQuant (arXiv 2206.01861), section 3.1.
    """

    kind = "dynamic"
    per_token = True

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        AffineGrid(bits=self.bits, symmetric=self.symmetric)

    @property
    def unsigned(self) -> bool:
        return not self.symmetric

    @property
    def affine(self) -> AffineGrid:
        """The grid of each token."""
        return AffineGrid(bits=self.bits, symmetric=self.symmetric)

    @property
    def middle(self) -> int:
        """The zero point of all tokens on a symmetric grid; that of a token of mean zero on another."""
        return MIDDLE if self.symmetric else 1 << self.bits - 1

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """FP32 scale and whole zero point of every token: (..., channels) -> (..., 1) each."""
        return self.affine.parameters(*torch.aminmax(x, dim=-1, keepdim=True))

    def snap(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """The nearest value of its token's grid for every element; in place if ``overwrite`` is set."""
        values, _ = self.quantize(x, values=True, integers=False, overwrite=overwrite)
        assert values is not None
        return values

    def encode(self, x: Tensor) -> TokenIntegers | None:
        """The integers of every element, for up to 8 bits; None if ``x`` holds NaN, which no byte represents.

        Their values equal :meth:`snap` to the bit.
        """
        return self.quantize(x, values=False, integers=True)[1]

    def quantize(
        self, x: Tensor, values: bool, integers: bool, overwrite: bool = False
    ) -> tuple[Tensor | None, TokenIntegers | None]:
        """:meth:`snap` and :meth:`encode` at once; each result is None unless asked for."""
        if native.takes(x) and x.numel():
            return snap_tokens(x, self.affine.q_max, self.symmetric, values, integers, overwrite)
        scale, zero_point = self.parameters(x)
        whole = self.affine.integers(x, scale, zero_point)
        snapped = (whole - zero_point).mul_(scale) if values else None
        if not integers or whole.isnan().any():
            return snapped, None
        shift = MIDDLE if self.symmetric else 0
        encoded = TokenIntegers(
            integers=(whole + shift).to(torch.uint8), scale=scale, zero_point=zero_point + shift
        )
        return snapped, encoded

    def function(
        self, scale: Tensor | None, zero_point: Tensor | None, overwrite: bool
    ) -> Callable[[Tensor], Tensor]:
        return partial(self.snap, overwrite=overwrite)

    def __str__(self) -> str:
        return f"{self.affine} per token"
