"""On a real GPU: its integers, its quantizers and its engines give the CPU's numbers, and are timed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from labs import Lab, gpu_lab
from tiny import ALL, GEMM, logits, padded, planned, tiny_model

from quantlab.engines.insert import ENGINES, insert
from quantlab.kernels.products import IntegerTensor, IntegerWeight, IntMm
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.quant.grid import AffineGrid
from quantlab.tasks.batching import on_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")


@pytest.fixture
def lab(tiny_bert: Path, tiny_glue: Path) -> Lab:
    return gpu_lab(tiny_bert, tiny_glue)


@pytest.mark.parametrize("rows, inputs, outputs", [(1, 5, 3), (16, 8, 8), (33, 384, 1537), (256, 3072, 768)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_of_integers_are_exact(rows: int, inputs: int, outputs: int, symmetric: bool) -> None:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (rows, inputs), generator=drawn).to(torch.uint8)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=drawn).to(torch.int8)
    zero = torch.zeros(outputs) if symmetric else torch.randint(-128, 128, (outputs,), generator=drawn)
    exact = (x.long() - 7) @ (weight.long() - zero.long()[:, None]).T
    product = IntMm(
        IntegerWeight(
            integers=weight.to(GPU), scale=torch.ones(outputs, device=GPU), zero_point=zero.int().to(GPU)
        )
    )
    found = product(IntegerTensor(integers=x.to(GPU), scale=1.0, zero_point=7), None)
    assert torch.equal(found.cpu(), exact.float())


@pytest.mark.parametrize("ranges", [1, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_quantizer_gives_the_cpus_bits(ranges: int, symmetric: bool) -> None:
    x, ends = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)), torch.linspace(0.5, 3, ranges)
    grid = AffineGrid(bits=8, symmetric=symmetric)
    scale, zero_point = grid.parameters(-ends, ends)
    ours = grid.function(scale.to(GPU), zero_point.to(GPU), False)(x.to(GPU)).cpu()
    assert torch.equal(ours, grid.function(scale, zero_point, False)(x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
@pytest.mark.parametrize("method", [Uniform(), Peg(sites=("*.ffn.*",), k=4)], ids=["uniform", "peg"])
def test_an_engine_gives_the_cpus_answers(engine: str, placement: Placement, method: Uniform) -> None:
    model, batch = tiny_model(), padded()
    plan = planned(model, placement, method)
    with insert(model, plan, "simulated"):
        expected = logits(model, batch)
    model.to(GPU)
    with insert(model, plan, engine) as inserted, torch.inference_mode():
        found = model(**on_device(batch, GPU)).logits.cpu()
    if engine == "integer":
        assert any(linear.on.endswith("torch._int_mm cuda") for linear in inserted.linears.values())
    assert (found - expected).abs().max() < 0.1 * expected.std()


def test_a_trial_is_timed_by_events(lab: Lab) -> None:
    found = lab.trial("model.device=cuda", "profile=quick", "profile.length=32")
    assert found.tags["device"] == "cuda" and found.tags["engine"] == "integer" and found.tags["gpu"]
    for name in ("latency_p50_ms", "speedup_vs_fp32", "peak_vram_allocated_mb", "peak_vram_reserved_mb"):
        value = found.metrics[name]
        assert isinstance(value, float) and value > 0
    np.testing.assert_allclose(
        found.logits, lab.trial("model.device=cpu").logits, atol=0.1 * found.logits.std()
    )
