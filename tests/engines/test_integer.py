"""Integer products against sums in float64, and the integer engine against the simulated one, Linear by
Linear."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ALL, FAMILIES, GEMM, logits, padded, planned, tied_decoder, tiny_model
from torch import Tensor, nn

from quantlab.engines import kernel_choice
from quantlab.engines.encoders import ENCODING, EncodingQuantizer
from quantlab.engines.encodings import ByGroup, ByToken, channels_by_group
from quantlab.engines.insert import insert
from quantlab.engines.integer import LinearExecution
from quantlab.engines.kernel_choice import CPU, KINDS, chosen_kernel, is_exact, product_of
from quantlab.kernels.products import (
    GeluProduct,
    IntegerTensor,
    IntegerWeight,
    OneDnn,
    OneDnnInHalves,
    Product,
    in_halves,
)
from quantlab.kernels.snapper import Snapper
from quantlab.kernels.wide_product import WideProduct
from quantlab.methods.dynamic import Dynamic
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.network.taps import ModuleOutput
from quantlab.quant.grid import AffineGrid

XHY = ("*.ffn.in", "*.ffn.out", "*.ffn.sum")


@pytest.fixture
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every exact kernel is fast enough: products here are tiny, and each processor runs as many kinds as it
    can."""
    monkeypatch.setattr(kernel_choice, "SLOW", math.inf)


def weight(outputs: int, inputs: int, zero_points: bool = False, fill: int | None = None) -> IntegerWeight:
    integers = (
        torch.randint(-127, 128, (outputs, inputs)) if fill is None else torch.full((outputs, inputs), fill)
    )
    zeros = torch.randint(-128, 128, (outputs,)) if zero_points else torch.zeros(outputs)
    return IntegerWeight(
        integers=integers.to(torch.int8), scale=torch.rand(outputs) + 0.01, zero_point=zeros.int()
    )


def exactly(x: IntegerTensor, w: IntegerWeight, bias: Tensor | None) -> Tensor:
    values = (x.integers.double() - x.zero_point) * x.scale
    y = values @ ((w.integers.double() - w.zero_point[:, None]) * w.scale[:, None].double()).T
    return y if bias is None else y + bias


@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 5, 8, 3), (40, 384, 16), (3, 16, 768, 100)], ids=str)
@given(
    zero_point=st.integers(0, 255), scale=st.floats(1e-6, 1e3), seed=st.integers(0, 99), biased=st.booleans()
)
def test_products_are_the_sums(
    shape: tuple[int, ...], zero_points: bool, zero_point: int, scale: float, seed: int, biased: bool
) -> None:
    torch.manual_seed(seed)
    *rows, inputs, outputs = shape
    w, bias = weight(outputs, inputs, zero_points), torch.randn(outputs) if biased else None
    x = IntegerTensor(
        integers=torch.randint(0, 256, (*rows, inputs), dtype=torch.uint8), scale=scale, zero_point=zero_point
    )
    expected = exactly(x, w, bias)
    exact = [kind for kind in KINDS if kind.fits(not zero_points, CPU) and is_exact(kind, CPU)]
    assert exact
    for kind in exact:
        y = kind(w)(x, bias)
        assert y.shape == expected.shape and y.dtype == torch.float32
        assert float((y - expected).norm() / expected.norm()) < 1e-6


@given(integers=st.lists(st.integers(0, 255), min_size=1, max_size=9), zero_point=st.integers(0, 255))
def test_halves_are_the_whole_and_fit_into_pairs_of_16_bits(integers: list[int], zero_point: int) -> None:
    x = IntegerTensor(integers=torch.tensor(integers, dtype=torch.uint8), scale=1.0, zero_point=zero_point)
    halves = in_halves(x)
    assert halves.integers.max() <= 128
    lower, upper = (half.int() - halves.zero_point for half in halves.integers.split(len(integers)))
    assert torch.equal(lower + upper, x.integers.int() - zero_point)


@pytest.mark.parametrize("x", [0, 255])
@pytest.mark.parametrize("w", [-128, -127, 127])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kernel_that_passes_for_exact_does_not_saturate(kind: type[Product], x: int, w: int) -> None:
    if not is_exact(kind, CPU):
        pytest.skip(f"{kind.name} is not exact on this processor")
    full = weight(32, 4096, fill=w)
    one = IntegerTensor(integers=torch.full((32, 4096), x, dtype=torch.uint8), scale=1.0, zero_point=128)
    torch.testing.assert_close(kind(full)(one, None).double(), exactly(one, full, None), rtol=1e-6, atol=0)


def test_signed_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"takes integers as torch\.uint8, got torch\.int8"):
        IntegerTensor(integers=torch.zeros(2, 8, dtype=torch.int8), scale=1.0, zero_point=0)


def test_without_a_kernel_there_is_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "KINDS", ())
    with pytest.raises(ValueError, match="no integer kernel is exact and fast"):
        product_of(weight(8, 8))
    model = tiny_model()
    plan = planned(model, ALL, Uniform())
    with insert(model, plan) as _:
        simulated = logits(model, padded())
    with insert(model, plan, "integer") as inserted:
        assert torch.equal(logits(model, padded()), simulated)
    assert any("no integer kernel is exact and fast" in ran.on for ran in inserted.linears.values())


SETTINGS = {
    "symmetric": (Uniform(), {"symmetric": True}),
    "asymmetric": (Uniform(), {"symmetric": False}),
    "4 bits": (Uniform(), {"weights": 4, "activations": 4}),
    "per channel": (Uniform(), {"weight_granularity": "channel"}),
    "asymmetric weights": (Uniform(), {"weight_symmetric": False}),
    "asymmetric weights per channel": (
        Uniform(),
        {"weight_symmetric": False, "weight_granularity": "channel"},
    ),
    "peg": (Peg(sites=XHY, k=3), {"symmetric": True}),
    "peg in order": (Peg(sites=XHY, k=5, permute="none"), {"symmetric": False}),
    "mixed": (MixedPrecision(keep=XHY), {}),
    "per token": (Dynamic(), {"symmetric": True}),
    "per token, asymmetric, 4 bits": (Dynamic(), {"activations": 4, "weight_granularity": "channel"}),
    "per token, asymmetric weights": (Dynamic(), {"weight_symmetric": False}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_gives_what_the_simulation_gives(
    family: str, placement: Placement, setting: str, any_speed: None
) -> None:
    """Each on the very input that it got, against float64 on the quantized values."""
    method, bits = SETTINGS[setting]
    model, compared = tiny_model(family), []

    def compare(linear: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        assert isinstance(linear, nn.Linear)
        bias = None if linear.bias is None else linear.bias.double()
        expected = nn.functional.linear(on_grid(inputs[0]), linear.weight.double(), bias)
        if hasattr(y, ENCODING):  # GELU of the product, on the grid of the next one's input
            assert y.isnan().all()
            onto = getattr(y, ENCODING).encoder
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
    in_integers = [one for one in ran if one.in_integers]
    assert len(in_integers) >= len(ran) - (4 if setting == "mixed" else 2), inserted.linears
    assert any("3 x" in one.on or "5 x" in one.on for one in ran) == (setting.startswith("peg"))


def on_grid(x: Tensor) -> Tensor:
    """What a Linear's input stands for: its carried integers where it has some, else its values."""
    carried = getattr(x, ENCODING, None)
    if carried is None:
        return x.double()
    if carried.encoder.values and isinstance(carried.encoder, EncodingQuantizer):
        assert torch.equal(carried.encoder.snapper(x), x)
    integers = carried.of(x)
    if isinstance(integers, ByToken):
        tokens = integers.tokens
        return (tokens.integers.double() - tokens.zero_point) * tokens.scale
    assert isinstance(integers, ByGroup)
    values = torch.empty(x.shape, dtype=torch.float64)
    for channels, part in zip(
        channels_by_group(integers.groups) or [slice(None)], integers.parts, strict=True
    ):
        values[..., channels] = (part.integers.double() - part.zero_point) * part.scale
    return values


def test_what_stays_in_fp32_says_why(any_speed: None) -> None:
    model = tiny_model()
    plan = planned(
        model, ALL, MixedPrecision(keep=("0.ffn.in",)), rules=[{"match": "*.1.*query.weight", "bits": 16}]
    )
    with insert(model, plan, "integer") as inserted:
        logits(model, padded())
    layer = "bert.encoder.layer"
    assert inserted.linears[f"{layer}.0.intermediate.dense"] == LinearExecution.fp32(
        "its input is not on an integer grid"
    )
    assert inserted.linears[f"{layer}.1.attention.self.query"] == LinearExecution.fp32(
        "its weight is int16 symmetric"
    )
    assert inserted.linears[f"{layer}.1.attention.self.key"].in_integers


@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
def test_a_head_that_is_the_embedding_multiplies_integers(placement: Placement, any_speed: None) -> None:
    torch.manual_seed(0)
    model, batch = tied_decoder(words=200).eval().requires_grad_(False), padded()
    plan, found = planned(model, placement, Uniform(), symmetric=True), {}
    for engine in ("simulated", "integer"):
        with insert(model, plan, engine) as inserted:
            found[engine] = logits(model, batch)
    assert inserted.linears["lm_head"].in_integers
    torch.testing.assert_close(found["integer"], found["simulated"], rtol=1e-4, atol=1e-6)


def test_the_integers_of_a_tensor_are_made_once_for_all_who_read_them(
    monkeypatch: pytest.MonkeyPatch, any_speed: None
) -> None:
    made, original = [], Snapper.integers
    monkeypatch.setattr(Snapper, "integers", lambda *a, **k: made.append(1) or original(*a, **k))
    model = tiny_model(layers=1)
    with insert(model, planned(model, ALL, Uniform()), "integer"):
        for _ in range(3):
            made.clear()
            logits(model, padded())
            # what q, k and v read, attention's output, the FFN's first (the second's come with GELU), the
            # classifier
            kind = chosen_kernel(True, CPU)
            assert kind is not None and len(made) == (4 if issubclass(kind, GeluProduct) else 5)


@pytest.mark.parametrize("kind", [OneDnn, OneDnnInHalves, WideProduct], ids=lambda kind: kind.name)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 5])
@given(seed=st.integers(0, 99), wide=st.floats(0.05, 2))
def test_gelu_with_a_product_is_gelu_after_it(
    kind: type[GeluProduct], bits: int, symmetric: bool, seed: int, wide: float
) -> None:
    """To the bit on oneDNN's symmetric grids, else but for a few values in the middle between two steps."""
    if not is_exact(kind, CPU):
        pytest.skip(f"{kind.name} is not exact on this processor")
    torch.manual_seed(seed)
    grid = AffineGrid(bits=bits, symmetric=symmetric)
    w, bias = weight(48, 64), torch.randn(48)
    integers = torch.randint(0, 256, (40, 64), dtype=torch.uint8)
    x = IntegerTensor(integers=integers, scale=float(1 / (w.scale.max() * 64 * 127)), zero_point=120)
    apart = nn.functional.gelu(kind(w)(x, bias))
    snap = grid.snapper(*grid.parameters(*(wide * extreme for extreme in apart.aminmax())))
    onto = kind(w).gelu(x, bias, snap)
    values = onto.scale * (onto.integers.float() - onto.zero_point)
    if grid.symmetric and issubclass(kind, OneDnn):
        assert torch.equal(values, snap(apart))
    else:
        steps = (values - snap(apart)).abs() / onto.scale
        assert steps.max() < 1.001 and (steps > 0.5).double().mean() < 2e-3
    shift = 128 if grid.symmetric else 0  # signed integers travel as unsigned bytes
    assert onto.integers.min() >= grid.q_min + shift and onto.integers.max() <= grid.q_max + shift


@pytest.mark.parametrize("why", ["another activation", "a site between", "groups", "FP16", "simulated"])
def test_gelu_stays_apart_where_something_else_reads_it(why: str) -> None:
    model, batch = tiny_model(layers=1), padded()
    layer = model.bert.encoder.layer[0]
    if why == "another activation":
        layer.intermediate.intermediate_act_fn = nn.GELU(approximate="tanh")
    method = {"groups": Peg(sites=("*.ffn.mid",), k=2), "FP16": MixedPrecision(keep=("*.ffn.mid",))}.get(
        why, Uniform()
    )
    plan = planned(model, ALL, method)
    if why == "a site between":
        item = next(item for item in plan.activations if item.tap.module.endswith("output.dense"))
        between = replace(
            item, site="0.ffn.between", tap=ModuleOutput("bert.encoder.layer.0.intermediate.dense")
        )
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
    assert found["simulated"][0].isnan().all() and torch.equal(
        found["integer"].isnan(), found["simulated"].isnan()
    )


def test_exit_restores_the_forwards() -> None:
    model, batch = tiny_model(), padded()
    eager, plan = logits(model, batch), planned(model, ALL, Uniform())
    with pytest.raises(KeyboardInterrupt), insert(model, plan, "integer"):
        assert not torch.equal(logits(model, batch), eager)
        raise KeyboardInterrupt
    assert all("forward" not in vars(module) for module in model.modules())
    assert torch.equal(logits(model, batch), eager)
