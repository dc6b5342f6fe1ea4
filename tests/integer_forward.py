"""A feed-forward block in integers and in FP32, run as a script: answers, kernels and times as JSON.

It imports no more than products need: a process for each instruction set has to start quickly.
"""

import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from quantlab.engines import kernel_choice
from quantlab.kernels.isa import isa
from quantlab.kernels.products import GeluProduct, IntegerTensor, IntegerWeight, Product
from quantlab.kernels.snapper import Snapper
from quantlab.quant.grid import AffineGrid

ROWS, HIDDEN, MIDDLE, ROUNDS = 64, 384, 1536, 9
SETTINGS = {"symmetric": (True, True), "asymmetric": (False, True), "asymmetric weights": (True, False)}


def main() -> None:
    torch.manual_seed(0)
    found = {name: compared(*setting) for name, setting in SETTINGS.items()}
    kernels = {
        kind.name: (is_right(kind), kernel_choice.is_exact(kind, kernel_choice.CPU))
        for kind in kernel_choice.KINDS
    }
    print(
        json.dumps(
            {"isa": isa(), "arithmetic": kernel_choice.arithmetic(), "kernels": kernels, "settings": found}
        )
    )


def compared(symmetric: bool, symmetric_weights: bool) -> dict[str, float]:
    """The integers' error against float64, as a share of the answers' norm, and their time by FP32's."""
    first, second = (made(*shape, symmetric_weights) for shape in ((MIDDLE, HIDDEN), (HIDDEN, MIDDLE)))
    x = torch.randn(ROWS, HIDDEN)
    onto = [snapper(symmetric, x), snapper(symmetric, torch.tensor([-0.17, 9.0]))]
    exact = gelu(linear(onto[0](x).double(), values(first).double()))
    expected = linear(onto[1](exact.float()).double(), values(second).double())
    weights = [values(first), values(second)]
    products = [
        None if kernel_choice.why_no_kernel(weight) else kernel_choice.product_of(weight)
        for weight in (first, second)
    ]

    def in_integers() -> Tensor:
        if products[0] is None or products[1] is None:
            return linear(onto[1](gelu(linear(onto[0](x), weights[0]))), weights[1])
        source = on_grid(onto[0], x)
        if isinstance(products[0], GeluProduct) and kernel_choice.fuses_gelu(products[0], onto[1]):
            return products[1](products[0].gelu(source, None, onto[1]), None)
        return products[1](on_grid(onto[1], gelu(products[0](source, None))), None)

    def in_fp32() -> Tensor:
        return linear(gelu(linear(x, weights[0])), weights[1])

    with torch.inference_mode():
        error = float((in_integers() - expected).norm() / expected.norm())
        times = [(seconds(in_integers), seconds(in_fp32)) for _ in range(ROUNDS)]
    integers, fp32 = zip(*times, strict=True)
    return {"error": error, "times_fp32": median(integers) / median(fp32)}


def is_right(kind: type[Product]) -> bool:
    """Whether the largest sums come out right."""
    zeros = torch.zeros(32, dtype=torch.int32)
    full = IntegerWeight(
        integers=torch.full((32, 4096), 127, dtype=torch.int8), scale=torch.ones(32), zero_point=zeros
    )
    x = IntegerTensor(integers=torch.full((32, 4096), 255, dtype=torch.uint8), scale=1.0, zero_point=0)
    return bool(((kind(full)(x, None).double() / (255 * 127 * 4096) - 1).abs() < 1e-6).all())


def made(outputs: int, inputs: int, symmetric: bool) -> IntegerWeight:
    zeros = torch.zeros(outputs) if symmetric else torch.randint(-9, 10, (outputs,))
    integers = (40 * torch.randn(outputs, inputs)).round().clamp(-127, 127).to(torch.int8)
    return IntegerWeight(
        integers=integers, scale=torch.full((outputs,), 1 / 40 / inputs**0.5), zero_point=zeros.int()
    )


def values(weight: IntegerWeight) -> Tensor:
    return (weight.integers.float() - weight.zero_point[:, None]) * weight.scale[:, None]


def snapper(symmetric: bool, x: Tensor) -> Snapper:
    grid = AffineGrid(bits=8, symmetric=symmetric)
    return grid.snapper(*grid.parameters(*(extreme.reshape(1) for extreme in x.aminmax())))


def on_grid(onto: Snapper, x: Tensor) -> IntegerTensor:
    integers = onto.integers(x, values=False)[1]
    assert integers is not None
    return IntegerTensor(integers=integers, scale=onto.scale.item(), zero_point=int(onto.byte_zero_point))


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
