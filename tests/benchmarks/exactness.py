"""Integer engine against simulated engine on real rows: ``python tests/benchmarks/exactness.py --shared
<folder>``.

For each setting: answers that differ, the simulated margins (difference of the two logits) where they do, and
the difference of the logits. The other two lines put exact products (float64, rounded once) beside both
engines: a quantized network amplifies the rounding of FP32's sums, and which engine is nearer to the truth
shows there.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.engines.insert import insert
from quantlab.machine.allocator import keep_freed_memory
from quantlab.storage.memo import Memo
from quantlab.sweeping.run_config import RunConfig
from quantlab.trial.config import check_trial
from quantlab.trial.material import fp32_sketches, load_material
from quantlab.trial.planning import make_plan

SETTINGS = (
    "placement=all bits.symmetric=true",
    "placement=all bits.symmetric=false",
    "placement=gemm bits.symmetric=true",
    "placement=gemm bits.symmetric=false bits.weight_granularity=channel",
    "placement=all bits.symmetric=true method=peg method.k=4",
    "placement=all bits.symmetric=true method=mixed_precision",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--limit", default="null")
    arguments = parser.parse_args()
    register()
    keep_freed_memory()
    place = arguments.shared.absolute()
    rows = [
        "model=hf",
        "task=qnli",
        "tracking=off",
        f"model.path={place}/models/minilm-qnli",
        f"task.data_dir={place}/data/glue/qnli",
        f"evaluation.limit={arguments.limit}",
    ]
    memo = Memo()
    for setting in SETTINGS:
        print(setting)
        with initialize_config_dir(CONF, version_base="1.3"):
            both_engines(instantiate(compose("config", [*rows, *setting.split()])), memo)


def both_engines(config: RunConfig, memo: Memo) -> None:
    shared = (config.model, config.task, config.evaluation)
    material = load_material(*shared, memo)
    fp32 = memo.get("sketches", shared, lambda: fp32_sketches(material, config.calibration))
    plan, _ = make_plan(config, material, check_trial(config, memo), fp32)
    logits = {}
    for name, engine in (("simulated", "simulated"), ("integer", "integer"), ("exact", "simulated")):
        with insert(material.model, plan, engine), exact_products() if name == "exact" else nullcontext():
            logits[name] = material.predict(name).logits
    for one, other in (("integer", "simulated"), ("exact", "simulated"), ("integer", "exact")):
        compare(f"  {one} against {other}", logits[other], logits[one])


@contextmanager
def exact_products() -> Iterator[None]:
    """Linears that sum in float64."""

    def forward(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        bias = None if linear.bias is None else linear.bias.double()
        return nn.functional.linear(x.double(), linear.weight.double(), bias).float()

    before = nn.Linear.forward
    nn.Linear.forward = forward
    try:
        yield
    finally:
        nn.Linear.forward = before


def compare(name: str, base: np.ndarray, found: np.ndarray) -> None:
    differ = base.argmax(-1) != found.argmax(-1)
    margins = np.sort(np.abs(base[differ, 0] - base[differ, 1]))
    shown = f", margins {margins.min():.2g} to {margins.max():.2g}" if len(margins) else ""
    error = np.linalg.norm(found - base) / np.linalg.norm(base)
    print(
        f"{name}: {differ.sum()} of {len(base)} answers differ{shown}; logits differ by "
        f"{error:.2g} of their norm",
        flush=True,
    )


if __name__ == "__main__":
    main()
