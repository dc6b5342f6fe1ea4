"""Files of decoders and vision transformers answer as the simulation does."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import NOTES, onnx_s_grids, run
from small import MODELS, batch_for, errors, made
from torch import Tensor

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.sites import Placement
from quantlab.plan.plan import QuantPlan
from quantlab.runtimes.onnx_file import export_onnx
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.openvino import OpenVino
from quantlab.runtimes.runtime import FileRuntime, planned_products
from quantlab.runtimes.saturation import saturates
from quantlab.tasks.batching import Batch

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[onnx]'")

PLACEMENTS = {"gemm": Placement(at="operand"), "all": Placement(at="tensor")}
FAST = {("llama", "all"), ("vit", "all")}
CASES = [
    pytest.param(family, at, marks=[] if (family, at) in FAST else pytest.mark.slow, id=f"{family}, {at}")
    for family in MODELS
    if family != "bert"
    for at in PLACEMENTS
]


@cache
def exported(family: str, at: str, signed: bool) -> tuple[Path, Batch, Tensor, int]:
    """The file, a batch, the simulation's answers to it, and the integer products that are planned."""
    model = made(family)
    batch, bits, calibration = batch_for(model), Bits(weight_granularity="channel", norms=8), MinMax()
    sites = PLACEMENTS[at].select(all_sites(model))
    sketches = observe(model, sites, [batch])
    weights = plan_weights(model, Uniform(), bits, calibration)
    plan = QuantPlan(activations=Uniform().activations(sites, sketches, bits, calibration), weights=weights)
    with torch.inference_mode(), onnx_s_grids(), insert(model, plan):
        simulated = model(**batch.inputs).logits.clone()
    path = Path(tempfile.mkdtemp(prefix="quantlab-tests-")) / "model.onnx"
    export_onnx(model, plan, batch.inputs, path, NOTES, signed)
    return path, batch, simulated, planned_products(path)


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino()], ids=lambda runtime: runtime.package)
@pytest.mark.parametrize("family, at", CASES)
def test_a_file_answers_as_the_simulation(family: str, at: str, runtime: FileRuntime) -> None:
    """Float sums are in another order there: a value between two levels takes the other one now and then."""
    pytest.importorskip(runtime.package, reason=f"needs {runtime.package}")
    if saturates(runtime):
        pytest.skip("the runtime's integer products saturate on this processor: it has no VNNI")
    path, batch, simulated, planned = exported(family, at, runtime.signed)
    session = runtime.open(path, 1)
    answers = run(session, batch)
    off = errors(answers, simulated, batch)
    assert planned > 0
    assert off.median() < 0.01 and off.quantile(0.9) < 0.05
    alone = run(
        session,
        Batch(inputs={name: x[:1] for name, x in batch.inputs.items()}, indices=np.arange(1)),
    )
    torch.testing.assert_close(alone, answers[:1], rtol=0, atol=0.05)
