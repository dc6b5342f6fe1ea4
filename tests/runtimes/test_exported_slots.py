"""Files of plans with bases, dynamic grids and groups of a weight's inputs answer as the simulation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import NOTES, folder, onnx_s_grids, run
from small import batch_for, errors, made
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.dynamic import Dynamic
from quantlab.methods.method import Method, plan_weights
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.readers import readers
from quantlab.network.sites import Placement, Site
from quantlab.plan.plan import QuantPlan, SiteTransform
from quantlab.plan.quantizers import WeightQuant
from quantlab.quant.basis import Basis, Diagonal, Hadamard, Orthogonal, Permutation
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.runtimes.onnx_file import export_onnx
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.openvino import OpenVino
from quantlab.runtimes.runtime import FileRuntime, planned_products
from quantlab.runtimes.saturation import saturates
from quantlab.tasks.batching import Batch

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[onnx]'")


# Each family's model has eight Linears. Two read a part of a tensor: BERT's pooler and, for the exporter, a
# decoder's head. They multiply in float where the part is not between QuantizeLinear and DequantizeLinear.
ALL_DYNAMIC, NONE = (7, 7), (0, 0)


def diagonal(channels: int) -> Basis:
    return Diagonal(FrozenTensor(random(channels).exp()), FrozenTensor(random(channels)))


def hadamard(channels: int) -> Basis:
    return Hadamard(FrozenTensor(random(channels).sign()), block=16)


def orthogonal(channels: int) -> Basis:
    return Orthogonal(FrozenTensor(torch.linalg.qr(random(channels, channels)).Q))


def permutation(channels: int) -> Basis:
    return Permutation(FrozenTensor(random(channels).argsort()))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a plan has beside ranges."""

    bases: tuple[Callable[[int], Basis], ...] = ()  # of the sites that Linears read, in turns
    method: Method = field(default_factory=Uniform)
    bits: Mapping[str, Any] = field(default_factory=dict)
    group: int | None = None  # of the inputs of weights, whose products are in float then
    grouped: str = "*"  # which weights
    stored: bool = False  # the weights' integers are given, and are not the nearest
    dynamic: str = ""  # sites with a grid for every token, whatever the method
    at: str = "tensor"  # which sites are quantized
    integer: tuple[int, int] = (7, 8)  # products that ONNX Runtime has in integers: BERT's, Llama's


BASES = (diagonal, hadamard, orthogonal, permutation)
CASES = {
    "all in one": Case(
        bases=BASES, at="operand", dynamic="0.ffn.*", group=8, grouped="*pooler*", integer=(7, 8)
    ),
    "every basis": Case(bases=BASES),
    "diagonal": Case(bases=(diagonal,)),
    "hadamard": Case(bases=(hadamard,), bits={"symmetric": True}),
    "orthogonal": Case(bases=(orthogonal,)),
    "permutation, peg": Case(bases=(permutation,), method=Peg(sites=("0.*",), k=3), integer=(13, 22)),
    "dynamic": Case(method=Dynamic(), integer=ALL_DYNAMIC),
    "dynamic, symmetric": Case(method=Dynamic(), bits={"symmetric": True}, integer=ALL_DYNAMIC),
    "dynamic, 4 bits, hadamard": Case(
        bases=(hadamard,), method=Dynamic(), bits={"activations": 4, "weights": 4}, integer=ALL_DYNAMIC
    ),
    "groups": Case(bits={"weights": 4}, group=16, integer=NONE),
    "groups, dynamic, diagonal": Case(
        bases=(diagonal,), method=Dynamic(), bits={"weight_symmetric": False}, group=8, integer=NONE
    ),
    "weights alone, diagonal": Case(bases=(diagonal,), bits={"activations": 32}, integer=NONE),
    "weights alone, groups": Case(bits={"activations": 32, "weights": 4}, group=16, integer=NONE),
    "stored integers": Case(stored=True),
}
FAST = {("bert", "all in one")}
EACH = [
    pytest.param(
        family, name, marks=[] if (family, name) in FAST else pytest.mark.slow, id=f"{family}, {name}"
    )
    for family in ("bert", "llama")
    for name in CASES
]


def plan_for(model: PreTrainedModel, case: Case, batch: Batch) -> QuantPlan:
    """The plan with the min-max ranges of the batch, in the case's bases."""
    sites, calibration = Placement(at=case.at).select(all_sites(model)), MinMax()
    bits = Bits(**{"weight_granularity": "channel", **case.bits})
    base = QuantPlan(transforms=transforms(model, sites, case))
    weights = plan_weights(model, case.method, bits, calibration, base)
    if case.group is not None:
        weights = tuple(
            grouped(model, item, base, case.group) if fnmatch(item.parameter, case.grouped) else item
            for item in weights
        )
    if case.stored:
        weights = tuple(replace(item, integers=integers(model, item)) for item in weights)
    views = {name: basis.forward for name, basis in base.site_bases.items()}
    sketches = observe(model, sites, [batch], views=views)
    token_wise = [site for site in sites if fnmatch(site.name, case.dynamic)]
    others = [site for site in sites if site not in token_wise]
    activations = (
        *case.method.activations(others, sketches, bits, calibration),
        *Dynamic().activations(token_wise, sketches, bits, calibration),
    )
    return replace(base, activations=activations, weights=weights)


def transforms(model: PreTrainedModel, sites: list[Site], case: Case) -> tuple[SiteTransform, ...]:
    """The basis of every site that Linears read, but for a tied head."""
    paths: dict[str, list[str]] = {}
    for path, site in readers(model, sites).items():
        if path != "lm_head":
            paths.setdefault(site, []).append(f"{path}.weight")
    return tuple(
        SiteTransform(site=site, basis=basis(model.get_parameter(names[0]).shape[1]), weights=tuple(names))
        for (site, names), basis in zip(paths.items(), cycle(case.bases), strict=False)
    )


def grouped(model: PreTrainedModel, item: WeightQuant, base: QuantPlan, group: int) -> WeightQuant:
    """The quantizer with a range for so many inputs; of a matrix only."""
    value = base.in_basis(item.parameter, model.get_parameter(item.parameter).data)
    if value.ndim != 2 or value.shape[1] % group:
        return item
    parts = value.reshape(len(value), -1, group)
    return replace(
        item, group=group, axis=0, lo=FrozenTensor(parts.amin(-1)), hi=FrozenTensor(parts.amax(-1))
    )


def integers(model: PreTrainedModel, item: WeightQuant) -> FrozenTensor:
    """The nearest integers, every third of them one nearer to zero."""
    whole = item.rounded(model.get_parameter(item.parameter).data)
    chosen = torch.arange(whole.numel()).reshape(whole.shape) % 3 == 0
    return FrozenTensor(torch.where(chosen, whole - whole.sign(), whole))


@cache
def exported(family: str, name: str, signed: bool) -> tuple[Path, Batch, Tensor]:
    """The file, a batch, and the simulation's answers to it."""
    model = made(family)
    batch = batch_for(model)
    plan = plan_for(model, CASES[name], batch)
    with torch.inference_mode(), onnx_s_grids(), insert(model, plan):
        simulated = model(**batch.inputs).logits.clone()
    path = folder() / f"{family}, {name}, {signed}.onnx"
    export_onnx(model, plan, batch.inputs, path, NOTES, signed)
    return path, batch, simulated


@pytest.mark.parametrize(
    "runtime",
    [OnnxRuntime(), pytest.param(OpenVino(), marks=pytest.mark.slow)],
    ids=["onnxruntime", "openvino"],
)
@pytest.mark.parametrize("family, name", EACH)
def test_a_file_answers_as_the_simulation(family: str, name: str, runtime: FileRuntime) -> None:
    """But for values on the border of two steps, and with the integer products that the plan has."""
    pytest.importorskip(runtime.package, reason=f"needs {runtime.package}")
    if saturates(runtime):
        pytest.skip("the runtime's integer products saturate on this processor: it has no VNNI")
    path, batch, simulated = exported(family, name, runtime.signed)
    session = runtime.open(path, 1)
    off = errors(run(session, batch), simulated, batch)
    assert off.median() < 0.001 and off.quantile(0.9) < 0.03
    integer = sum(session.products().integer.values())
    assert planned_products(path) >= integer
    if isinstance(runtime, OnnxRuntime):
        assert integer == CASES[name].integer[family == "llama"]
