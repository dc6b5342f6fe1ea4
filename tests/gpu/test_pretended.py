"""Whole trials on a pretended GPU: no CPU's tensor meets a GPU's, and the answers are the CPU's."""

from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from labs import Lab, gpu_lab
from pretended import pretended_gpu

from quantlab.cli.conf_dir import CONF
from quantlab.engines.kernel_choice import check_kernel
from quantlab.storage.memo import Memo

METHODS = sorted(path.stem for path in (Path(CONF) / "method").glob("*.yaml"))
CALIBRATIONS = sorted(path.stem for path in (Path(CONF) / "calibration").glob("*.yaml"))
SETTINGS = {
    **{f"method={name}": (f"method={name}",) for name in METHODS},
    **{f"calibration={name}": (f"calibration={name}",) for name in CALIBRATIONS if name != "base"},
    "method=awq": ("method=awq", "bits.weight_group=16"),
    "method=zeroquant": ("method=zeroquant", "bits.weight_group=16"),
    "one grid a weight": ("bits.weight_granularity=tensor", "placement=gemm"),
    "groups": ("method=peg", "method.k=4", "method.permute=range", "placement=paper"),
    "simulated": ("method=peg", "method.k=4", "engine=simulated"),
    "asymmetric": ("bits.symmetric=false", "placement=gemm"),
}
LEARNED = ("method=adaround", "method=omniquant", "calibration=learned_clipping")  # autograd asks a real GPU
QUICK = (  # the others are slow
    "method=dynamic",
    "method=fp32",
    "method=gptq",
    "method=log2_probs",
    "method=mixed_precision",
    "method=orq",
    "method=peg",
    "method=smoothquant",
    "method=uniform",
)
ON_CPU, ON_GPU = Memo(), Memo()  # trials share the model and FP32's answers


@pytest.fixture
def lab(tiny_bert: Path, tiny_glue: Path) -> Lab:
    return gpu_lab(tiny_bert, tiny_glue)


def cases() -> list[ParameterSet]:
    needs_gpu = pytest.mark.skip(reason="learns by gradients, which need a real GPU")
    return [
        pytest.param(name, marks=needs_gpu if name in LEARNED else () if name in QUICK else pytest.mark.slow)
        for name in SETTINGS
    ]


@pytest.mark.parametrize("setting", cases())
def test_a_trial_on_a_gpu_gives_the_cpus_answers(lab: Lab, setting: str) -> None:
    expected = lab.trial(*SETTINGS[setting], memo=ON_CPU)
    check_kernel.cache_clear()
    with pretended_gpu():
        found = lab.trial(*SETTINGS[setting], memo=ON_GPU)
    check_kernel.cache_clear()
    assert found.tags["device"] == "cuda:0"
    assert found.tags["engine"] == expected.tags["engine"]
    np.testing.assert_allclose(found.logits, expected.logits, atol=0.05 * expected.logits.std())
