"""Dynamic grids: every token has the range of its own values, so nothing is calibrated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.kernels.snapper import MIDDLE
from quantlab.quant.grid import AffineGrid


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenIntegers:
    """A tensor quantized token by token: its values are ``scale (integers - zero_point)``.

    The integers are unsigned for symmetric grids too, as the kernels take them.
    """

    integers: Tensor  # uint8, (..., channels)
    scale: Tensor  # FP32, (..., 1)
    zero_point: Tensor  # whole numbers in FP32, (..., 1), between 0 and 255


@dataclass(frozen=True, kw_only=True)
class DynamicGrid:
    """An affine grid for every token, from the token's own extremes.

    A token is a slice of the last dimension. Symmetric: ``s_t = max|x_t| / (2^(b-1) - 1)``. Asymmetric:
    ``s_t = (max x_t - min x_t) / (2^b - 1)``, where the range is extended to include zero. So the zero point
    is one of the integers, and a product can be computed in integers. A token of zeros has scale 1. Source:
    ZeroQuant (arXiv 2206.01861), section 3.1.
    """

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        AffineGrid(bits=self.bits, symmetric=self.symmetric)

    @property
    def affine(self) -> AffineGrid:
        """The grid of each token."""
        return AffineGrid(bits=self.bits, symmetric=self.symmetric)

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """FP32 scale and whole zero point of every token: (..., channels) -> (..., 1) each."""
        return self.affine.parameters(*torch.aminmax(x, dim=-1, keepdim=True))

    def snap(self, x: Tensor) -> Tensor:
        """The nearest value of its token's grid for every element."""
        scale, zero_point = self.parameters(x)
        return (self.affine.integers(x, scale, zero_point) - zero_point).mul_(scale)

    def encode(self, x: Tensor) -> TokenIntegers | None:
        """The integers of every element, for up to 8 bits; None if ``x`` holds NaN, which no byte represents.

        Their values equal :meth:`snap` to the bit.
        """
        scale, zero_point = self.parameters(x)
        whole = self.affine.integers(x, scale, zero_point)
        if whole.isnan().any():
            return None
        shift = MIDDLE if self.symmetric else 0
        return TokenIntegers(
            integers=whole.add_(shift).to(torch.uint8), scale=scale, zero_point=zero_point + shift
        )

    def __str__(self) -> str:
        return f"{self.affine} per token"
