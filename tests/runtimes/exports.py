"""Tiny models exported once a process, and what their plans and their simulations say of the files."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ALL, GEMM, logits, padded, plan_of, sites_of, state, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, plan_weights
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.plan.plan import QuantPlan
from quantlab.quant.grid import AffineGrid
from quantlab.runtimes.onnx_file import export_onnx
from quantlab.tasks.batching import Batch

XHY = ("*.ffn.in", "*.ffn.out", "*.ffn.sum")
GROUPS = 3
NOTES = {"quantlab_key": "a key", "quantlab_plan": "a plan"}
ROWS = padded(range(1, 65))  # calibrated on these, answered on these: little is clipped


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan for a tiny model of one layer, and the integer products that its file has."""

    family: str
    placement: Placement
    products: (
        int  # Linears that read a quantized tensor or a part of it; one for each group where it is in groups
    )
    method: Method = field(default_factory=Uniform)
    bits: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> PreTrainedModel:
        return tiny_model(self.family, layers=1)

    def plan(self, model: PreTrainedModel) -> QuantPlan:
        return planned(model, self.placement, self.method, **self.bits)


CASES = {
    "gemm": Case(family="bert", placement=GEMM, products=8),
    "all, symmetric, per channel": Case(
        family="bert", placement=ALL, products=8, bits={"symmetric": True, "weight_granularity": "channel"}
    ),
    "all, asymmetric weights, norms": Case(
        family="roberta", placement=ALL, products=8, bits={"weight_symmetric": False, "norms": 8}
    ),
    "gemm, symmetric, asymmetric 4-bit weights per channel": Case(
        family="distilbert",
        placement=GEMM,
        products=8,
        bits={"symmetric": True, "weights": 4, "weight_symmetric": False, "weight_granularity": "channel"},
    ),
    "peg, 4-bit weights, norms": Case(
        family="electra",
        placement=ALL,
        products=11,
        method=Peg(sites=XHY, k=GROUPS),
        bits={"weights": 4, "norms": 8},
    ),
    "gemm, peg of channels and heads": Case(
        family="electra without projection",
        placement=GEMM,
        products=10,
        method=Peg(sites=("*.ffn.in", "*.attn.probs"), k=GROUPS),
    ),
    "mixed": Case(
        family="distilbert",
        placement=ALL,
        products=6,
        method=MixedPrecision(keep=XHY),
        bits={"rules": [{"match": "*q_lin.weight", "bits": "fp16"}]},
    ),
    "fp32": Case(family="bert", placement=ALL, products=0, bits={"weights": 32, "activations": 32}),
}
QUANTIZED = [name for name in CASES if name != "fp32"]
FAST = ("gemm", "peg, 4-bit weights, norms")
EACH_QUANTIZED = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in QUANTIZED]


@dataclass(frozen=True, kw_only=True, eq=False)
class Exported:
    """A file, and the model that it was made of: its state before and after, its answers to :data:`ROWS`."""

    case: Case
    path: Path
    model: PreTrainedModel
    plan: QuantPlan
    states: tuple[dict[str, object], dict[str, object]]
    fp32: Tensor
    simulated: Tensor


def planned(model: PreTrainedModel, placement: Placement, method: Method, **bits: Any) -> QuantPlan:
    """A plan with the min-max ranges of :data:`ROWS`."""
    sites, calibration, chosen = sites_of(model, placement), MinMax(), Bits(**bits)
    sketches = observe(model, sites, [ROWS])
    return plan_of(
        method, sites, sketches, plan_weights(model, method, chosen, calibration), chosen, calibration
    )


def all_of(model: PreTrainedModel) -> dict[str, object]:
    """Everything of a model that an export touches."""
    return {**state(model), "forwards": [vars(module).get("forward") for module in model.modules()]}


def part(rows: slice | list[int], tokens: int) -> Batch:
    """Some of :data:`ROWS`, padded to fewer tokens. Row i has i + 1."""
    inputs = {name: tensor[rows, :tokens] for name, tensor in ROWS.inputs.items()}
    return Batch(inputs=inputs, indices=np.arange(len(inputs["input_ids"])))


@cache
def exported(name: str, signed: bool = False) -> Exported:
    """The file of one of :data:`CASES`."""
    case = CASES[name]
    model = case.model()
    plan, path = case.plan(model), folder() / f"{len(list(folder().iterdir()))}.onnx"
    fp32 = logits(model, ROWS)
    in_bytes = tuple(item for item in plan.activations if item.grid.bits == 8)  # the rest stays in FP32 there
    with onnx_s_grids(), insert(model, replace(plan, activations=in_bytes)):
        simulated = logits(model, ROWS)
    before = all_of(model)
    export_onnx(model, plan, ROWS.inputs, path, NOTES, signed)
    return Exported(
        case=case,
        path=path,
        model=model,
        plan=plan,
        states=(before, all_of(model)),
        fp32=fp32,
        simulated=simulated,
    )


@contextmanager
def onnx_s_grids() -> Iterator[None]:
    """Inside, symmetric grids have the one level more that ONNX's bytes have: values beyond the range may
    take it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AffineGrid, "q_min", property(lambda grid: -128 if grid.symmetric else 0))
        yield


@cache
def folder() -> Path:
    """Where files lie until the tests are over."""
    made = Path(tempfile.mkdtemp(prefix="quantlab-tests-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def run(session: Any, batch: Batch) -> Tensor:
    """A session's answers."""
    return torch.from_numpy(session({name: tensor.numpy() for name, tensor in batch.inputs.items()}))
