"""Integer products against sums in float64, and the integer engine against the simulated one, Linear by Linear."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ALL, FAMILIES, GEMM, logits, padded, sites_of, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantlab.calibration import MinMax, observe
from quantlab.methods.base import Method, plan_weights
from quantlab.methods.bits import Bits
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.placement.insert import insert
from quantlab.placement.integer import CARRIED, FP32, members
from quantlab.placement.plan import QuantPlan
from quantlab.placement.sites import Placement, Tap
from quantlab.quant import integer
from quantlab.quant.grid import AffineGrid
from quantlab.quant.integer import IntMm, OneDnn, OnGrid, Weight, is_exact, product
from quantlab.quant.snapper import Snapper

CPU = torch.device("cpu")
XHY = ("*.ffn.in", "*.ffn.out", "*.ffn.sum")


def weight(outputs: int, inputs: int, zero_points: bool = False, fill: int | None = None) -> Weight:
    integers = torch.randint(-127, 128, (outputs, inputs)) if fill is None else torch.full((outputs, inputs), fill)
    zeros = torch.randint(-128, 128, (outputs,)) if zero_points else torch.zeros(outputs)
    return Weight(integers=integers.to(torch.int8), scale=torch.rand(outputs) + 0.01, zero_point=zeros.int())


def exactly(x: OnGrid, w: Weight, bias: Tensor | None) -> Tensor:
    values = (x.integers.double() - x.zero_point) * x.scale
    y = values @ ((w.integers.double() - w.zero_point[:, None]) * w.scale[:, None].double()).T
    return y if bias is None else y + bias


@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 5, 8, 3), (40, 384, 16), (3, 16, 768, 100)], ids=str)
@given(zero_point=st.integers(0, 255), scale=st.floats(1e-6, 1e3), seed=st.integers(0, 99), biased=st.booleans())
def test_products_are_the_sums(
    shape: tuple[int, ...], zero_points: bool, zero_point: int, scale: float, seed: int, biased: bool
) -> None:
    torch.manual_seed(seed)
    *rows, inputs, outputs = shape
    w, bias = weight(outputs, inputs, zero_points), torch.randn(outputs) if biased else None
    x = OnGrid(integers=torch.randint(0, 256, (*rows, inputs), dtype=torch.uint8), scale=scale, zero_point=zero_point)
    expected = exactly(x, w, bias)
    for multiply in (product(w), IntMm(w)):
        y = multiply(x, bias)
        assert y.shape == expected.shape and y.dtype == torch.float32
        assert float((y - expected).norm() / expected.norm()) < 1e-6


def test_the_fastest_exact_kernel_is_taken() -> None:
    assert isinstance(product(weight(8, 8)), OneDnn if is_exact(OneDnn, CPU) else IntMm)
    assert isinstance(product(weight(8, 8, zero_points=True)), IntMm)


@pytest.mark.parametrize("x", [0, 255])
@pytest.mark.parametrize("w", [-128, -127, 127])
@pytest.mark.parametrize("kind", [OneDnn, IntMm])
def test_the_largest_sums_do_not_saturate(kind: type[OneDnn] | type[IntMm], x: int, w: int) -> None:
    full = weight(32, 4096, fill=w)
    multiply = kind(full)
    one = OnGrid(integers=torch.full((32, 4096), x, dtype=torch.uint8), scale=1.0, zero_point=128)
    torch.testing.assert_close(multiply(one, None).double(), exactly(one, full, None), rtol=1e-6, atol=0)


SATURATES = """
import torch
from quantlab.quant.integer import IntMm, OneDnn, is_exact, product
from test_integer import exactly, weight
from quantlab.quant.integer import OnGrid
full = weight(32, 4096, fill=127)
x = OnGrid(integers=torch.full((32, 4096), 255, dtype=torch.uint8), scale=1.0, zero_point=0)
for kind in (OneDnn, IntMm):
    right = bool(((kind(full)(x, None) / exactly(x, full, None) - 1).abs() < 1e-6).all())
    print(kind.__name__, right, is_exact(kind, torch.device("cpu")))
"""


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_a_processor_whose_sums_saturate_is_found_out(isa: str) -> None:
    """oneDNN as older processors run it: a kernel passes the trial exactly if it gets the largest sums right."""
    done = subprocess.run(
        [sys.executable, "-c", SATURATES], cwd=os.path.dirname(__file__), capture_output=True, text=True, timeout=120,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        kind, right, passes = line.split()
        assert right == passes, (isa, kind)


def test_without_an_exact_kernel_there_is_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "is_exact", lambda *_: False)
    with pytest.raises(ValueError, match="no integer kernel is exact"):
        product(weight(8, 8))
    model = tiny_model()
    plan = planned(model, ALL, Uniform())
    with insert(model, plan) as _:
        simulated = logits(model, padded())
    with insert(model, plan, "integer") as inserted:
        assert torch.equal(logits(model, padded()), simulated)
    assert any("no integer kernel is exact" in ran for ran in inserted.linears.values())


def planned(model: PreTrainedModel, placement: Placement, method: Method, **bits: object) -> QuantPlan:
    sites, calibration, chosen = sites_of(model, placement), MinMax(), Bits(**bits)  # type: ignore[arg-type]
    sketches = observe(model, sites, [padded()])
    return method.plan(sites, sketches, plan_weights(model, method, chosen, calibration), chosen, calibration)


SETTINGS = {
    "symmetric": (Uniform(), {"symmetric": True}),
    "asymmetric": (Uniform(), {"symmetric": False}),
    "4 bits": (Uniform(), {"weights": 4, "activations": 4}),
    "per channel": (Uniform(), {"weight_granularity": "channel"}),
    "asymmetric weights": (Uniform(), {"weight_symmetric": False}),
    "asymmetric weights per channel": (Uniform(), {"weight_symmetric": False, "weight_granularity": "channel"}),
    "peg": (Peg(sites=XHY, k=3), {"symmetric": True}),
    "peg in order": (Peg(sites=XHY, k=5, permute="none"), {"symmetric": False}),
    "mixed": (MixedPrecision(keep=XHY), {}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_gives_what_the_simulation_gives(family: str, placement: Placement, setting: str) -> None:
    """Each on the very input that it got, against float64 on the quantized values."""
    method, bits = SETTINGS[setting]
    model, compared = tiny_model(family), []

    def compare(linear: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        assert isinstance(linear, nn.Linear)
        bias = None if linear.bias is None else linear.bias.double()
        expected = nn.functional.linear(on_grid(inputs[0]), linear.weight.double(), bias)
        if hasattr(y, CARRIED):  # GELU of the product, on the grid of the next one's input
            assert y.isnan().all()
            onto = getattr(y, CARRIED).by
            steps = (on_grid(y) - onto.snapper(nn.functional.gelu(expected).float())).abs() / onto.scales[0]
            assert steps.max() < 1.001 and (steps > 0.5).double().mean() < 2e-3
            compared.append(0.0)
        else:
            compared.append(float((y - expected).norm() / expected.norm()))

    plan = planned(model, placement, method, **bits)
    with insert(model, plan, "integer") as inserted:
        for module in model.modules():
            if isinstance(module, nn.Linear):  # after the plan's own hooks on inputs, before those on outputs
                module.register_forward_hook(compare, prepend=True)
        for lengths in [(9, 4, 1, 9, 6, 2), (3,), (16, 16)]:
            logits(model, padded(lengths))
    assert len(compared) == 3 * len(inserted.linears) and max(compared) < 1e-6
    ran = list(inserted.linears.values())
    in_integers = [kernel for kernel in ran if not kernel.startswith(FP32)]
    assert len(in_integers) >= len(ran) - (4 if setting == "mixed" else 2), inserted.linears
    assert any("3 x" in kernel or "5 x" in kernel for kernel in ran) == (setting.startswith("peg"))


def on_grid(x: Tensor) -> Tensor:
    """What a Linear's input stands for: its carried integers where it has some, else its values."""
    carried = getattr(x, CARRIED, None)
    if carried is None:
        return x.double()
    if carried.by.values:
        assert torch.equal(carried.by.snapper(x), x)
    values = torch.empty(x.shape, dtype=torch.float64)
    for channels, part in zip(members(carried.by.groups) or [slice(None)], carried.parts, strict=True):
        values[..., channels] = (part.integers.double() - part.zero_point) * part.scale
    return values


def test_what_stays_in_fp32_says_why() -> None:
    model = tiny_model()
    plan = planned(model, ALL, MixedPrecision(keep=("0.ffn.in",)), rules=[{"match": "*.1.*query.weight", "bits": 16}])
    with insert(model, plan, "integer") as inserted:
        logits(model, padded())
    layer = "bert.encoder.layer"
    assert inserted.linears[f"{layer}.0.intermediate.dense"] == f"{FP32}its input is not on an integer grid"
    assert inserted.linears[f"{layer}.1.attention.self.query"] == f"{FP32}its weight is int16 symmetric"
    assert not inserted.linears[f"{layer}.1.attention.self.key"].startswith(FP32)


def test_the_integers_of_a_tensor_are_made_once_for_all_who_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = [], Snapper.integers
    monkeypatch.setattr(Snapper, "integers", lambda *a, **k: made.append(1) or original(*a, **k))
    model = tiny_model(layers=1)
    with insert(model, planned(model, ALL, Uniform()), "integer"):
        for _ in range(3):
            made.clear()
            logits(model, padded())
            # what q, k and v read, attention's output, the FFN's first (the second's come with GELU), the classifier
            assert len(made) == (4 if is_exact(OneDnn, CPU) else 5)


@pytest.mark.skipif(not is_exact(OneDnn, CPU), reason="oneDNN's product is not exact on this processor")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 5])
@given(seed=st.integers(0, 99), wide=st.floats(0.05, 2))
def test_gelu_with_a_product_is_gelu_after_it(bits: int, symmetric: bool, seed: int, wide: float) -> None:
    """To the bit on symmetric grids; on others but for a few values in the middle between two steps."""
    torch.manual_seed(seed)
    grid = AffineGrid(bits=bits, symmetric=symmetric)
    w, bias = weight(48, 64), torch.randn(48)
    integers = torch.randint(0, 256, (40, 64), dtype=torch.uint8)
    x = OnGrid(integers=integers, scale=float(1 / (w.scale.max() * 64 * 127)), zero_point=120)
    apart = nn.functional.gelu(OneDnn(w)(x, bias))
    snap = grid.snapper(*grid.parameters(*(wide * extreme for extreme in apart.aminmax())))
    onto = OneDnn(w).gelu(x, bias, snap)
    values = onto.scale * (onto.integers.float() - onto.zero_point)
    if grid.symmetric:
        assert torch.equal(values, snap(apart))
    else:
        steps = (values - snap(apart)).abs() / onto.scale
        assert steps.max() < 1.001 and (steps > 0.5).double().mean() < 2e-3
    assert onto.integers.min() >= grid.q_min and onto.integers.max() <= grid.q_max


@pytest.mark.parametrize("why", ["another activation", "a site between", "groups", "FP16", "simulated"])
def test_gelu_stays_apart_where_something_else_reads_it(why: str) -> None:
    model, batch = tiny_model(layers=1), padded()
    layer = model.bert.encoder.layer[0]
    if why == "another activation":
        layer.intermediate.intermediate_act_fn = nn.GELU(approximate="tanh")
    method = {"groups": Peg(sites=("*.ffn.mid",), k=2), "FP16": MixedPrecision(keep=("*.ffn.mid",))}.get(why, Uniform())
    plan = planned(model, ALL, method)
    if why == "a site between":
        item = next(item for item in plan.activations if item.tap.module.endswith("output.dense"))
        between = replace(item, site="0.ffn.between", tap=Tap("bert.encoder.layer.0.intermediate.dense", "output"))
        plan = replace(plan, activations=(*plan.activations, between))
    seen: list[Tensor] = []
    layer.intermediate.dense.register_forward_hook(lambda _, __, y: seen.append(y))
    with insert(model, plan, "simulated" if why == "simulated" else "integer"):
        assert logits(model, batch).isfinite().all()
    assert seen[0].isfinite().all()


@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
def test_nan_stays_nan(placement: Placement) -> None:
    """As FP16 that overflows makes it in the next LayerNorm; a byte in its place would hide that."""
    model = tiny_model()
    plan = planned(model, placement, Uniform())
    batches = [padded((9, 4)), padded((9, 4))]
    word = int(batches[0].inputs["input_ids"][0, 1])
    found = {}
    for engine in ("simulated", "integer"):
        with insert(model, plan, engine):
            sound = logits(model, batches[0])
            embedding = model.get_input_embeddings().weight.data
            kept = embedding[word].clone()
            embedding[word] = torch.nan
            found[engine] = logits(model, batches[1])
            embedding[word] = kept
            assert torch.equal(logits(model, batches[0]), sound) and sound.isfinite().all()
    assert found["simulated"][0].isnan().all() and torch.equal(found["integer"].isnan(), found["simulated"].isnan())


def test_exit_restores_the_forwards() -> None:
    model, batch = tiny_model(), padded()
    eager, plan = logits(model, batch), planned(model, ALL, Uniform())
    with pytest.raises(KeyboardInterrupt), insert(model, plan, "integer"):
        assert not torch.equal(logits(model, batch), eager)
        raise KeyboardInterrupt
    assert all("forward" not in vars(module) for module in model.modules())
    assert torch.equal(logits(model, batch), eager)
