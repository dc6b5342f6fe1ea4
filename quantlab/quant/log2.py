"""Log2 grids, for probabilities: most are tiny, and powers of two cover them with few bits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.config.checks import whole
from quantlab.quant.grid import Grid

MOST_BITS = 7  # 2^-126 is the least normal FP32 number


@dataclass(frozen=True, kw_only=True)
class Log2Grid(Grid):
    """The values 1, 1/2, 1/4, ... and zero: ``q = clip(round(-log2 p), 0, 2^b - 1)`` for b = ``bits`` bits.

    ``q`` stands for ``2^-q``, and the last integer stands for zero: what is masked stays zero. Rounding is in
    the logarithm, so it switches at ``sqrt(2) 2^k``. FQ-ViT's code (arXiv 2111.13824) switches at ``1.5 2^k``
    and needs one integer more for zero. Values above 1 become 1, negative ones zero.
    """

    kind = "log2"

    bits: int

    def __post_init__(self) -> None:
        whole("bits", self.bits, 2, MOST_BITS)

    @property
    def zero(self) -> int:
        """The integer that stands for zero."""
        return (1 << self.bits) - 1

    def integers(self, p: Tensor) -> Tensor:
        """``q`` of every probability, as whole numbers in the dtype of ``p``."""
        return p.clamp(min=0).log2().neg_().round_().clamp_(0, self.zero)

    def values(self, q: Tensor) -> Tensor:
        """What the integers stand for."""
        return torch.where(q < self.zero, torch.exp2(-q), torch.zeros_like(q))

    def snap(self, p: Tensor) -> Tensor:
        """Quantize, then dequantize. NaN stays NaN."""
        q = self.integers(p)
        return torch.where(q.isnan(), q, self.values(q))

    def function(
        self, scale: Tensor | None, zero_point: Tensor | None, overwrite: bool
    ) -> Callable[[Tensor], Tensor]:
        return self.snap

    def __str__(self) -> str:
        return f"log2 in {self.bits} bits"
