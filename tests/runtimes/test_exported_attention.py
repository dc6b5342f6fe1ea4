"""Files of networks with changed attention answer as they do; formats that would drop the change refuse."""

from functools import cache
from pathlib import Path

import pytest
import torch
from exports import NOTES, folder, run
from small import batch_for, errors, made
from torch import Tensor

from quantlab.network.changed_attention import GATES, Clipped, Gated
from quantlab.plan.plan import QuantPlan
from quantlab.runtimes.compressed import schemes_of
from quantlab.runtimes.onnx_file import export_onnx
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.openvino import OpenVino
from quantlab.runtimes.runtime import FileRuntime
from quantlab.tasks.batching import Batch

CHANGES = {"clipped": Clipped(gamma=-0.1, zeta=1.05), "gated": Gated()}


FAST = {("gated", "bert"), ("clipped", "llama")}
CASES = [
    pytest.param(kind, family, marks=[] if (kind, family) in FAST else pytest.mark.slow)
    for kind in CHANGES
    for family in ("bert", "llama", "vit", "gpt2 with classes")
]


@cache
def exported(kind: str, family: str) -> tuple[Path, Batch, Tensor, Tensor]:
    """The file, a batch, and the answers to it of the plain and of the changed network."""
    model = made(family)
    batch, path = batch_for(model), folder() / f"{kind}-{family}.onnx"
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        CHANGES[kind].install(model)
        random = torch.Generator().manual_seed(1)
        for name, value in model.named_parameters():
            if name.startswith(GATES):
                value.copy_(torch.randn(value.shape, generator=random))
        changed = model(**batch.inputs).logits
    export_onnx(model, QuantPlan(), batch.inputs, path, NOTES)
    return path, batch, plain, changed


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino()], ids=lambda runtime: runtime.package)
@pytest.mark.parametrize("kind, family", CASES)
def test_a_file_has_the_change(kind: str, family: str, runtime: FileRuntime) -> None:
    for package in ("onnx", "onnxscript", runtime.package):
        pytest.importorskip(package, reason=f"needs {package}")
    path, batch, plain, changed = exported(kind, family)
    answers = run(runtime.open(path, 1), batch)
    assert errors(answers, changed, batch).max() < 1e-4 < errors(plain, changed, batch).max()


@pytest.mark.parametrize("kind", CHANGES)
def test_compressed_tensors_refuses_it(kind: str) -> None:
    model = made("llama")
    CHANGES[kind].install(model)
    with pytest.raises(ValueError, match=f"compute plain attention: this network's is {CHANGES[kind].kind}"):
        schemes_of(model, QuantPlan())
