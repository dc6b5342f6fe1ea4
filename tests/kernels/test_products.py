"""Integer products in the shapes that networks have, against float64."""

import ctypes
import platform
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from quantlab.engines.kernel_choice import CPU, KINDS, is_exact
from quantlab.kernels import native
from quantlab.kernels.isa import isa
from quantlab.kernels.products import IntegerTensor, IntegerWeight, OneDnnInHalves, Product
from quantlab.kernels.wide_product import MOST_INPUTS, WideProduct

EXACT = [kind for kind in KINDS if is_exact(kind, CPU)]


def integers(seed: int, lowest: int, highest: int, *shape: int) -> Tensor:
    return torch.randint(lowest, highest + 1, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    zero_point=st.integers(0, 255),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
@example([1], 576, 1536, 128, False, 0)  # a decoder's token
@example([1, 1], 1536, 576, 131, False, 0)
@example([1, 511], 576, 192, 128, False, 0)  # a window without its last token
@example([2, 50], 384, 1536, 7, True, 0)  # a ViT's patches and its class token
@example([1, 2, 3], 1536, 384, 128, True, 0)
def test_products_of_any_shape(
    kind: type[Product], rows: list[int], inputs: int, outputs: int, zero_point: int, biased: bool, seed: int
) -> None:
    symmetric = kind.fits(False, CPU) is False
    x, w = integers(seed, 0, 255, *rows, inputs), integers(seed + 1, -127, 127, outputs, inputs)
    zeros = torch.zeros(outputs).int() if symmetric else integers(seed + 2, -9, 9, outputs).int()
    scale = torch.rand(outputs, generator=torch.Generator().manual_seed(seed)) + 0.1
    bias = torch.linspace(-1, 1, outputs) if biased else None
    multiply = kind(IntegerWeight(integers=w.to(torch.int8), scale=scale, zero_point=zeros))
    y = multiply(IntegerTensor(integers=x.to(torch.uint8), scale=0.01, zero_point=zero_point), bias)
    expected = 0.01 * (x - zero_point).double() @ ((w - zeros[:, None]).double() * scale[:, None]).T
    assert y.shape == (*rows, outputs) and y.dtype == torch.float32
    torch.testing.assert_close(
        y.double(), expected if bias is None else expected + bias, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_inputs_of_another_width_are_refused(kind: type[Product]) -> None:
    weight = IntegerWeight(
        integers=torch.ones(8, 64, dtype=torch.int8), scale=torch.ones(8), zero_point=torch.zeros(8).int()
    )
    x = IntegerTensor(integers=torch.ones(4, 48, dtype=torch.uint8), scale=1.0, zero_point=0)
    with pytest.raises((RuntimeError, ValueError)):
        kind(weight)(x, None)


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def small(inputs: int = 70, outputs: int = 50) -> tuple[IntegerTensor, IntegerWeight, Tensor]:
    x = IntegerTensor(integers=integers(1, 0, 255, 45, inputs).to(torch.uint8), scale=0.01, zero_point=7)
    w = integers(2, -128, 127, outputs, inputs).to(torch.int8)
    zeros = integers(3, -128, 127, outputs).int()
    return x, IntegerWeight(integers=w, scale=torch.rand(outputs), zero_point=zeros), torch.randn(outputs)


@needs_compiler
def test_threads_share_rows_and_change_no_bit() -> None:
    x, weight, bias = small()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(WideProduct(weight)(x, bias))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, found[0]) for y in found)


@needs_compiler
@pytest.mark.skipif(isa() != "avx2", reason="oneDNN has other kernels on other processors")
@pytest.mark.parametrize("biased", [True, False])
def test_c_gives_the_bits_of_onednn(biased: bool) -> None:
    x, weight, bias = small()
    symmetric = replace(weight, zero_point=torch.zeros_like(weight.zero_point))
    in_c, in_halves = (kind(symmetric)(x, bias if biased else None) for kind in (WideProduct, OneDnnInHalves))
    assert torch.equal(in_c, in_halves)


@needs_compiler
def test_plain_c_gives_the_bits_of_this_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = small()
    fast = WideProduct(weight)(x, bias)
    monkeypatch.setattr(native, "FLAGS", ("-O1", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi"))
    native._compile(native._compiler(), tmp_path / "kernels.so")
    plain = native._declared(ctypes.CDLL(str(tmp_path / "kernels.so")))
    monkeypatch.setattr(native, "library", lambda: plain)
    assert torch.equal(WideProduct(weight)(x, bias), fast)


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="not an x86 processor")
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512", "icelake-server"])
def test_kernels_compile_for_other_processors(processor: str) -> None:
    flags = [flag for flag in native.FLAGS if not flag.startswith("-march")]
    command = ["cc", *flags, f"-march={processor}", "-Wno-psabi", "-fsyntax-only", str(native.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_more_inputs_than_32_bits_can_sum_are_refused() -> None:
    weight = IntegerWeight(
        integers=torch.zeros(1, MOST_INPUTS + 1, dtype=torch.int8),
        scale=torch.ones(1),
        zero_point=torch.zeros(1).int(),
    )
    with pytest.raises(ValueError, match="sums at most 33025 inputs in 32 bits, got 33026"):
        WideProduct(weight)
