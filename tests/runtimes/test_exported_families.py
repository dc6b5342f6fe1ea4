"""Files of decoders and vision transformers answer as the simulation does."""

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import NOTES, onnx_s_grids, run
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    Dinov2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    ViTConfig,
)

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.conversion import conv1d_to_linear
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

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
LLAMA = LlamaConfig(
    **SIZES,
    intermediate_size=48,
    num_key_value_heads=2,
    vocab_size=50,
    max_position_embeddings=32,
    tie_word_embeddings=True,
)
GPT2 = GPT2Config(
    vocab_size=50,
    n_embd=32,
    n_layer=1,
    n_head=4,
    n_positions=32,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
MODELS = {
    "llama": (AutoModelForCausalLM, LLAMA),
    "gpt2 with classes": (AutoModelForSequenceClassification, GPT2),
    "vit": (
        AutoModelForImageClassification,
        ViTConfig(**SIZES, intermediate_size=64, image_size=16, patch_size=4),
    ),
    "dinov2": (
        AutoModelForImageClassification,
        Dinov2Config(**SIZES, mlp_ratio=2, image_size=16, patch_size=4),
    ),
}
PLACEMENTS = {"gemm": Placement(at="operand"), "all": Placement(at="tensor")}
FAST = {("llama", "all"), ("vit", "all")}
CASES = [
    pytest.param(family, at, marks=[] if (family, at) in FAST else pytest.mark.slow, id=f"{family}, {at}")
    for family in MODELS
    for at in PLACEMENTS
]


def made(family: str) -> PreTrainedModel:
    """All parameters are random, and large enough for answers to differ."""
    auto, config = MODELS[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config, attn_implementation="eager")
        for value in model.parameters():
            noise = torch.randn_like(value)
            value.data = noise * value.shape[-1] ** -0.5 if value.ndim > 1 else value.data + 0.1 * noise
    conv1d_to_linear(model)
    return model.requires_grad_(False).eval()


def batch_for(model: PreTrainedModel) -> Batch:
    """Eight rows: images, or texts padded on the right."""
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Tensor]
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.randn(8, 3, 16, 16, generator=generator)}
    else:
        mask = (torch.arange(9) < torch.tensor([9, 4, 7, 9, 6, 2, 8, 9])[:, None]).long()
        inputs = {
            "input_ids": torch.randint(3, 50, (8, 9), generator=generator) * mask,
            "attention_mask": mask,
        }
    return Batch(inputs=inputs, indices=np.arange(8))


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


def valid(logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """A decoder's answers at tokens that are no padding; other answers as they are."""
    return logits[inputs["attention_mask"].bool()] if logits.ndim == 3 else logits


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
    errors = (valid(answers, batch.inputs) - valid(simulated, batch.inputs)).abs() / simulated.abs().max()
    assert answers.shape == simulated.shape and planned > 0
    assert errors.median() < 0.01 and errors.quantile(0.9) < 0.05
    alone = run(
        session,
        Batch(inputs={name: x[:1] for name, x in batch.inputs.items()}, indices=np.arange(1)),
    )
    torch.testing.assert_close(alone, answers[:1], rtol=0, atol=0.05)
