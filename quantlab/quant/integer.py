"""Matrix products in integers: the same numbers as FP32 on quantized values, at integer speed.

For an input ``s_x (q_x - z_x)`` and a weight ``s_w (q_w - z_w)`` the product is ``s_x s_w`` times a sum of whole
numbers that 32 bits hold exactly (Jacob et al. 2018, section 2.2). Only the last multiplication and the bias are
rounded, so the result is nearer to the true one than FP32's own sum.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from quantlab.quant.snapper import MIDDLE, Snapper

BITS = 8  # what the kernels take
INT_MM_MULTIPLE, INT_MM_ROWS = 8, 32  # cuBLASLt takes more than 16 rows, and other sizes in multiples of 8


@dataclass(frozen=True, kw_only=True, eq=False)
class OnGrid:
    """A tensor's values ``scale (integers - zero_point)``."""

    integers: Tensor  # uint8 or int8, (..., inputs)
    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Weight:
    """A Linear's weight ``scale (integers - zero_point)``."""

    integers: Tensor  # int8, (outputs, inputs)
    scale: Tensor  # FP32, (outputs,)
    zero_point: Tensor  # int32, (outputs,)

    def inputs(self, channels: Tensor) -> "Weight":
        """The weight's part for some of the input channels."""
        return replace(self, integers=self.integers[:, channels].contiguous())


class Product(ABC):
    """One weight, made ready for one kernel."""

    kernel: str

    @abstractmethod
    def __call__(self, x: OnGrid, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias``, FP32, for integers of shape (..., inputs)."""


class OneDnn(Product):
    """oneDNN's product of bytes, for symmetric weights on a CPU."""

    def __init__(self, weight: Weight):
        self.packed = torch.ops.onednn.qlinear_prepack(weight.integers, None)
        self.scale, self.zero_point = weight.scale, torch.zeros_like(weight.scale, dtype=torch.long)
        self.kernel = f"onednn {isa()}"

    def __call__(self, x: OnGrid, bias: Tensor | None) -> Tensor:
        return self._run(x, bias, 1.0, 0, torch.float32, "none")

    def gelu(self, x: OnGrid, bias: Tensor | None, onto: Snapper) -> OnGrid:
        """GELU of the product, on a grid of up to 8 bits with one range, without a number in FP32 that leaves the
        processor's registers.

        Symmetric grids get signed bytes, for oneDNN adds a zero point before it rounds: to 128 and more, whose last bit
        is worth 1/65536 of a step. With a zero point an element in a million is off by a step for that.
        """
        assert onto.numbers is not None
        _, lower, _, scale = onto.numbers
        zero_point = int(onto.q_min - lower)
        integers = self._run(x, bias, scale, zero_point, torch.int8 if onto.q_min < 0 else torch.uint8, "gelu")
        return OnGrid(integers=integers.clamp_(onto.q_min, onto.q_max), scale=scale, zero_point=zero_point)

    def _run(
        self, x: OnGrid, bias: Tensor | None, scale: float, zero_point: int, dtype: torch.dtype, post: str
    ) -> Tensor:
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            x.integers, x.scale, x.zero_point, self.packed, self.scale, self.zero_point, bias,
            scale, zero_point, dtype, post, [], "none",
        )  # fmt: skip
        return y


class IntMm(Product):
    """``torch._int_mm`` on a GPU, and wherever the weight has zero points."""

    def __init__(self, weight: Weight):
        self.outputs, inputs = weight.integers.shape
        extra = (0, -inputs % INT_MM_MULTIPLE, 0, -self.outputs % INT_MM_MULTIPLE)
        self.inputs, self.extra_inputs = inputs, extra[1]
        self.weight = pad(weight.integers, extra).t()
        self.scale, self.zero_point = weight.scale, weight.zero_point
        self.sums = weight.integers.sum(1, dtype=torch.int32)
        self.kernel = f"torch._int_mm {isa() if weight.scale.device.type == 'cpu' else 'cuda'}"

    def __call__(self, x: OnGrid, bias: Tensor | None) -> Tensor:
        integers, zero = x.integers.reshape(-1, self.inputs), x.zero_point
        if integers.dtype == torch.uint8:
            integers, zero = (integers.short() - MIDDLE).to(torch.int8), zero - MIDDLE
        rows = len(integers)
        padded = pad(integers, (0, self.extra_inputs, 0, max(0, INT_MM_ROWS - rows)))
        total = torch._int_mm(padded, self.weight)[:rows, : self.outputs] - zero * self.sums
        if self.zero_point.any():
            total -= (integers.sum(1, dtype=torch.int32, keepdim=True) - zero * self.inputs) * self.zero_point
        y = total.float().mul_(x.scale * self.scale)
        return (y if bias is None else y.add_(bias)).reshape(*x.integers.shape[:-1], self.outputs)


def product(weight: Weight) -> Product:
    """The fastest exact kernel for a weight on its device. Raises ValueError where none is exact."""
    for kind in _fitting(weight):
        if is_exact(kind, weight.scale.device):
            return kind(weight)
    raise ValueError("no integer kernel is exact on this processor")


def has_exact_kernel(weight: Weight) -> bool:
    """Whether there is a :func:`product`."""
    return any(is_exact(kind, weight.scale.device) for kind in _fitting(weight))


def _fitting(weight: Weight) -> list[type[OneDnn] | type[IntMm]]:
    symmetric = not bool(weight.zero_point.any())
    return [OneDnn, IntMm] if symmetric and weight.scale.device.type == "cpu" else [IntMm]


@cache
def is_exact(kind: type[OneDnn] | type[IntMm], device: torch.device) -> bool:
    """Whether a kernel sums the largest integers without saturating, tried out.

    Processors without VNNI add pairs of products in 16 bits; oneDNN's guide calls it undefined what comes of it.
    """
    count = 64
    for x, w, dtype in (
        (255, 127, torch.uint8), (255, -127, torch.uint8), (0, 127, torch.uint8), (127, 127, torch.int8),
        (-127, 127, torch.int8),
    ):  # fmt: skip
        weight = Weight(
            integers=torch.full((16, count), w, dtype=torch.int8, device=device),
            scale=torch.ones(16, device=device),
            zero_point=torch.zeros(16, dtype=torch.int32, device=device),
        )
        ones = torch.full((INT_MM_ROWS, count), x, dtype=dtype, device=device)
        try:
            y = kind(weight)(OnGrid(integers=ones, scale=1.0, zero_point=1), None)
        except (RuntimeError, AttributeError):  # a build of torch without this kernel
            return False
        if not bool((y == (x - 1) * w * count).all()):
            return False
    return True


@cache
def isa() -> str:
    """The processor's widest instructions for integer products."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    for name, shown in (("amx_int8", "amx"), ("avx512_vnni", "avx512_vnni"), ("avx_vnni", "avx_vnni")):
        if flags.get(name):
            return shown
    return torch.backends.cpu.get_cpu_capability().lower()
