"""Integer matrix products for quantized inputs and weights.

For an input ``s_x (q_x - z_x)`` and a weight ``s_w (q_w - z_w)`` the product is (Jacob et al. 2018, eq. 4)

    s_x s_w sum (q_x - z_x) (q_w - z_w)

and 32 bits hold the sum of whole numbers exactly. Only the last multiplication and the bias are rounded, so
the result is nearer to the true one than FP32's sum.

:mod:`quantlab.engines.kernel_choice` chooses which of these kernels runs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from quantlab.kernels.isa import isa
from quantlab.kernels.snapper import MIDDLE, Snapper

BITS = 8  # the most that the kernels take
INT_MM_MULTIPLE, INT_MM_ROWS = 8, 32  # cuBLASLt wants over 16 rows, and other sizes in multiples of 8


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerTensor:
    """A quantized input: its values are ``scale (integers - zero_point)``.

    The integers are unsigned even for a symmetric grid: on processors with AVX512 and without AMX, products
    of signed bytes take a thousand times FP32's time. Raises TypeError for other dtypes.
    """

    integers: Tensor  # uint8, (..., inputs)
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if self.integers.dtype != torch.uint8:
            raise TypeError(f"a product takes integers as torch.uint8, got {self.integers.dtype}")


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerWeight:
    """A Linear's quantized weight: its values are ``scale (integers - zero_point)``, row by row."""

    integers: Tensor  # int8, (outputs, inputs)
    scale: Tensor  # FP32, (outputs,)
    zero_point: Tensor  # int32, (outputs,)

    def inputs(self, channels: Tensor) -> "IntegerWeight":
        """The weight's columns for some of the input channels."""
        return replace(self, integers=self.integers[:, channels].contiguous())


class Product(ABC):
    """A weight prepared for one kernel, and the kernel's matrix product with it."""

    name: str  # of the kernel

    @abstractmethod
    def __init__(self, weight: IntegerWeight): ...

    @abstractmethod
    def __call__(self, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias`` in FP32: (..., inputs) -> (..., outputs)."""

    @staticmethod
    @abstractmethod
    def fits(symmetric: bool, device: torch.device) -> bool:
        """Whether the kernel takes weights on this device; ``symmetric``: all of their zero points are 0."""

    @classmethod
    def kernel(cls, device: torch.device) -> str:
        """The kernel's name with the instruction set or device, for example ``onednn avx512_vnni``."""
        return f"{cls.name} {isa() if device.type == 'cpu' else device.type}"


class GeluProduct(Product):
    """A kernel that can quantize the GELU of its product, so that the product is never in memory."""

    @abstractmethod
    def gelu(self, x: IntegerTensor, bias: Tensor | None, onto: Snapper) -> IntegerTensor:
        """GELU of the product, as bytes on the grid of ``onto``, which has up to 8 bits and one range."""


class OneDnn(GeluProduct):
    """oneDNN's product of unsigned by signed bytes, for symmetric weights on a CPU."""

    name = "onednn"

    def __init__(self, weight: IntegerWeight):
        self.packed = torch.ops.onednn.qlinear_prepack(weight.integers, None)
        self.scale, self.zero_point = weight.scale, torch.zeros_like(weight.scale, dtype=torch.long)

    @staticmethod
    def fits(symmetric: bool, device: torch.device) -> bool:
        return symmetric and device.type == "cpu"

    def __call__(self, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        return self._run(x, bias, 1.0, 0, torch.float32, "none")

    def gelu(self, x: IntegerTensor, bias: Tensor | None, onto: Snapper) -> IntegerTensor:
        """GELU of the product, quantized to bytes on the grid of ``onto``, in one kernel.

        oneDNN adds the zero point before it rounds. Around 128 the last bit of an FP32 number is worth
        1/65536 of a step, so that one element in a million is off by a step. Symmetric grids avoid this: they
        are rounded to signed bytes with zero point 0, and flipping the first bit then adds 128.
        """
        assert onto.numbers is not None
        _, lower, _, scale = onto.numbers
        zero_point, signed = int(onto.q_min - lower), onto.q_min < 0
        integers = self._run(x, bias, scale, zero_point, torch.int8 if signed else torch.uint8, "gelu")
        integers.clamp_(onto.q_min, onto.q_max)
        if signed:
            integers, zero_point = integers.view(torch.uint8).bitwise_xor_(MIDDLE), zero_point + MIDDLE
        return IntegerTensor(integers=integers, scale=scale, zero_point=zero_point)

    def _run(
        self,
        x: IntegerTensor,
        bias: Tensor | None,
        scale: float,
        zero_point: int,
        dtype: torch.dtype,
        post: str,
    ) -> Tensor:
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            x.integers,
            x.scale,
            x.zero_point,
            self.packed,
            self.scale,
            self.zero_point,
            bias,
            scale,
            zero_point,
            dtype,
            post,
            [],
            "none",
        )
        return y


class OneDnnInHalves(OneDnn):
    """oneDNN's product for processors without VNNI, which add pairs of byte products in 16 bits.

    A pair of 255 x 127 would saturate. So every input integer is split into two of at most 128, and every
    weight is stored twice. A pair is at most 2 x 128 x 127 = 32512, which fits, and the sum is the same.
    """

    name = "onednn in halves"

    def __init__(self, weight: IntegerWeight):
        super().__init__(replace(weight, integers=torch.cat([weight.integers, weight.integers], dim=1)))

    def _run(
        self,
        x: IntegerTensor,
        bias: Tensor | None,
        scale: float,
        zero_point: int,
        dtype: torch.dtype,
        post: str,
    ) -> Tensor:
        return super()._run(in_halves(x), bias, scale, zero_point, dtype, post)


def in_halves(x: IntegerTensor) -> IntegerTensor:
    """Splits every integer of ``x`` in two of at most 128 that add up to it: (..., n) -> (..., 2 n).

    The first n channels hold ``floor(q / 2)``, the others the rest. Each half has half of the zero
    point. An odd zero point is raised by 1 first, and every integer with it, so the values stay the same.
    """
    size, odd = x.integers.shape[-1], x.zero_point % 2
    halves = x.integers.new_empty((*x.integers.shape[:-1], 2 * size))
    lower, upper = halves[..., :size], halves[..., size:]
    torch.bitwise_right_shift(x.integers, 1, out=lower)
    torch.sub(x.integers, lower, out=upper)
    if odd:
        lower.add_(1)
    return IntegerTensor(integers=halves, scale=x.scale, zero_point=(x.zero_point + odd) // 2)


class IntMm(Product):
    """``torch._int_mm``: for GPUs, and for weights with zero points.

    It takes signed bytes, so 128 is subtracted from the input's integers and zero point. The zero points are
    applied to the sums: ``sum (q_x - z_x) (q_w - z_w) = sum q_x q_w - z_x sum q_w - z_w sum (q_x - z_x)``
    (Jacob et al. 2018, section 2.3, equation 7). Sizes are padded with zeros.
    """

    name = "torch._int_mm"

    def __init__(self, weight: IntegerWeight):
        self.outputs, inputs = weight.integers.shape
        extra = (0, -inputs % INT_MM_MULTIPLE, 0, -self.outputs % INT_MM_MULTIPLE)
        self.inputs, self.extra_inputs = inputs, extra[1]
        self.weight = pad(weight.integers, extra).t()
        self.scale, self.zero_point = weight.scale, weight.zero_point
        self.symmetric = not weight.zero_point.any()  # asked once: a GPU waits for each such answer
        self.sums = weight.integers.sum(1, dtype=torch.int32)

    @staticmethod
    def fits(symmetric: bool, device: torch.device) -> bool:
        return True

    def __call__(self, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        integers = x.integers.reshape(-1, self.inputs).bitwise_xor(MIDDLE).view(torch.int8)  # subtracts 128
        zero, rows = x.zero_point - MIDDLE, len(integers)
        extra = (0, self.extra_inputs, 0, max(0, INT_MM_ROWS - rows))
        padded = pad(integers, extra) if any(extra) else integers  # pad copies also where it adds nothing
        total = torch._int_mm(padded, self.weight)[:rows, : self.outputs].sub_(self.sums, alpha=zero)
        if not self.symmetric:
            total -= (integers.sum(1, dtype=torch.int32, keepdim=True) - zero * self.inputs) * self.zero_point
        y = total * (x.scale * self.scale)
        return (y if bias is None else y.add_(bias)).reshape(*x.integers.shape[:-1], self.outputs)
