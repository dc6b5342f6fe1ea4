"""Integer products in ``kernels.c``, exact on every processor and for weights with zero points."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from quantlab.kernels import native
from quantlab.kernels.products import GeluProduct, IntegerTensor, IntegerWeight
from quantlab.kernels.snapper import Snapper

PANEL = 16  # outputs that the kernel computes together
MOST_INPUTS = 2**31 // 255**2  # the largest sums fit into 32 bits


class WideProduct(GeluProduct):
    """A product whose integers have 16 bits: pairs of them are multiplied, and summed in 32 bits.

    Twice as fast as FP32 on processors without VNNI, where products of bytes saturate. Zero points cost
    nothing, since they are subtracted before. Raises ValueError for more inputs than 32 bits can sum.
    """

    name = "kernels.c"

    def __init__(self, weight: IntegerWeight):
        self.outputs, self.inputs = weight.integers.shape
        if self.inputs > MOST_INPUTS:
            raise ValueError(f"{self.name} sums at most {MOST_INPUTS} inputs in 32 bits, got {self.inputs}")
        wide = weight.integers.short() - weight.zero_point.short()[:, None]
        padded = pad(wide, (0, -self.inputs % 2, 0, -self.outputs % PANEL))
        self.panels = padded.view(-1, PANEL, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()
        self.scale = weight.scale

    @staticmethod
    def fits(symmetric: bool, device: torch.device) -> bool:
        return device.type == "cpu" and native.library() is not None

    @classmethod
    def kernel(cls, device: torch.device) -> str:
        return f"{cls.name} {native.instructions()}"

    def __call__(self, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        y = torch.empty(*x.integers.shape[:-1], self.outputs)
        self._run(x, bias, y=y)
        return y

    def gelu(self, x: IntegerTensor, bias: Tensor | None, onto: Snapper) -> IntegerTensor:
        assert onto.numbers is not None
        integers = torch.empty(*x.integers.shape[:-1], self.outputs, dtype=torch.uint8)
        zero_point = int(onto.byte_zero_point)
        self._run(x, bias, integers=integers, onto=onto.per_head(1), zero_point=zero_point)
        return IntegerTensor(integers=integers, scale=onto.numbers[3], zero_point=zero_point)

    def _run(
        self,
        x: IntegerTensor,
        bias: Tensor | None,
        y: Tensor | None = None,
        integers: Tensor | None = None,
        onto: Tensor | None = None,
        zero_point: int = 0,
    ) -> None:
        if x.integers.shape[-1] != self.inputs:
            raise ValueError(f"the weight has {self.inputs} inputs, got {x.integers.shape[-1]}")
        library, source = native.library(), x.integers.contiguous()
        assert library is not None
        bias = None if bias is None else bias.contiguous()
        scale = x.scale * self.scale
        failed = library.multiply(
            source.data_ptr(),
            self.panels.data_ptr(),
            scale.data_ptr(),
            native.address(bias),
            native.address(y),
            native.address(integers),
            source.numel() // self.inputs,
            self.inputs,
            self.outputs,
            x.zero_point,
            native.address(onto),
            zero_point,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a product of {self.inputs} inputs")
