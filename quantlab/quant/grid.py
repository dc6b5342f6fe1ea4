"""Grids: the sets of values that a quantized tensor may take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantlab.config.checks import nearest, one_of, whole
from quantlab.kernels.snapper import Snapper

BYTE_BITS, SCALE_BYTES = 8, 4  # of an integer that products take; of an FP32 scale
FLOAT_FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # the reciprocal of a subnormal scale is infinite


class Grid(ABC):
    """The values that a quantized tensor may take, with the verbs that plans, engines and sizes use.

    A subclass is a frozen dataclass. ``kind`` is its name in JSON.
    """

    kind: ClassVar[str]
    ranged: ClassVar[bool] = False  # whether it needs ranges, which calibration finds

    bits: int  # of an element

    per_token: ClassVar[bool] = False  # whether every token has a scale of its own

    @property
    def in_bytes(self) -> bool:
        """Whether its elements are integers of up to 8 bits with a fixed scale for each range."""
        return False

    @property
    def unsigned(self) -> bool:
        """Whether its integers begin at 0."""
        return False

    @property
    def range_bytes(self) -> int:
        """Bytes that one range takes."""
        return 0

    @abstractmethod
    def function(
        self, scale: Tensor | None, zero_point: Tensor | None, overwrite: bool
    ) -> Callable[[Tensor], Tensor]:
        """Quantizes and dequantizes a tensor; in place if ``overwrite`` is set and the grid can.

        ``scale`` and ``zero_point`` (:meth:`AffineGrid.parameters`) broadcast against the tensor; None
        unless the grid is ``ranged``.
        """


@dataclass(frozen=True, kw_only=True)
class AffineGrid(Grid):
    """The values ``s (q - z)`` for whole numbers q of b = ``bits`` bits (Bondarenko et al. 2021, section 2).

    Asymmetric: ``0 <= q <= 2^b - 1``, ``s = (hi - lo) / (2^b - 1)``, ``z = round(-lo / s)``.
    Symmetric: ``|q| <= 2^(b-1) - 1``, ``s = max|x| / (2^(b-1) - 1)``, ``z = 0``, so that -x is quantized to
    minus what x is quantized to.
    Zero is exact on both.
    """

    kind = "affine"
    ranged = True

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        whole("bits", self.bits, 2, 16)
        one_of("symmetric", self.symmetric, (False, True))

    @property
    def in_bytes(self) -> bool:
        return self.bits <= BYTE_BITS

    @property
    def unsigned(self) -> bool:
        return not self.symmetric

    @property
    def range_bytes(self) -> int:
        return SCALE_BYTES + (0 if self.symmetric else -(-self.bits // 8))

    @property
    def q_max(self) -> int:
        return (1 << self.bits - self.symmetric) - 1

    @property
    def q_min(self) -> int:
        return -self.q_max if self.symmetric else 0

    def parameters(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """FP32 scale and whole zero point of the ranges ``[lo, hi]``, which may have any shape.

        Ranges are extended to include zero. A range of zero width (only zeros were seen) gets scale 1.
        """
        lo, hi = lo.double().clamp(max=0), hi.double().clamp(min=0)
        width = torch.maximum(-lo, hi) if self.symmetric else hi - lo
        scale = (width / self.q_max).clamp(min=SMALLEST_SCALE).float()
        scale = torch.where(width > 0, scale, torch.ones_like(scale))
        zero_point = (
            torch.zeros_like(scale) if self.symmetric else (-lo / scale).round().clamp(0, self.q_max).float()
        )
        return scale, zero_point

    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """``q = clamp(round(x / s) + z, q_min, q_max)`` for every element, as whole numbers in FP32.

        ``scale`` and ``zero_point`` broadcast against ``x``. Multiplies by the reciprocal of the scale as
        torch's ``fake_quantize`` kernels do, and agrees with them to the bit.
        """
        return (x * scale.reciprocal()).round_().add_(zero_point).clamp_(self.q_min, self.q_max)

    def snap(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Quantize, then dequantize: the grid's value nearest to every element of ``x``."""
        return self.snapper(scale, zero_point)(x)

    def snapper(self, scale: Tensor, zero_point: Tensor, overwrite: bool = False) -> Snapper:
        """:meth:`snap` with a fixed scale and zero point: the same numbers, faster. ``overwrite``: in
        place."""
        return Snapper(scale, zero_point, self.q_min, self.q_max, overwrite)

    def function(self, scale: Tensor | None, zero_point: Tensor | None, overwrite: bool) -> Snapper:
        assert scale is not None and zero_point is not None
        return self.snapper(scale, zero_point, overwrite)

    def __str__(self) -> str:
        return f"int{self.bits} {'symmetric' if self.symmetric else 'asymmetric'}"


@dataclass(frozen=True, kw_only=True)
class FloatGrid(Grid):
    """The values of a 16-bit float format, ``fp16`` or ``bf16``. FP16 overflows to infinity beyond 65504."""

    kind = "float"
    bits = 16

    format: str

    def __post_init__(self) -> None:
        one_of("format", self.format, FLOAT_FORMATS)

    def snap(self, x: Tensor) -> Tensor:
        """``x`` rounded to the format, back in its own dtype."""
        return x.to(FLOAT_FORMATS[self.format]).to(x.dtype)

    def function(
        self, scale: Tensor | None, zero_point: Tensor | None, overwrite: bool
    ) -> Callable[[Tensor], Tensor]:
        return self.snap

    def __str__(self) -> str:
        return self.format


PRECISIONS = "fp32, fp16, bf16, int2..int16, or the number of bits 2..16 or 32"
NAMED = ("fp32", *FLOAT_FORMATS, *(f"int{bits}" for bits in range(2, 17)))


def grid_of(precision: int | str, symmetric: bool) -> Grid | None:
    """The grid that a precision names: ``8``, ``"int8"``, ``"fp16"``, ``"bf16"``, ...

    Returns None for ``32`` and ``"fp32"``, which are not quantized. Raises ValueError for any other name.
    """
    if precision in (32, "fp32"):
        return None
    if precision in FLOAT_FORMATS:
        return FloatGrid(format=str(precision))
    if isinstance(precision, str) and precision.startswith("int") and precision[3:].isdigit():
        precision = int(precision[3:])
    if isinstance(precision, str):
        raise ValueError(
            f"precision must be one of {PRECISIONS}; got {precision!r}{nearest(precision, NAMED)}"
        )
    return AffineGrid(bits=precision, symmetric=symmetric)
