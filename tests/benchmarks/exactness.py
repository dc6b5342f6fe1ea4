"""Integer engine against simulated engine on real rows: ``python tests/benchmarks/exactness.py --shared <folder>``.

For each setting: answers that differ, the simulated margins (difference of the two logits) where they do, and the
largest difference of a logit. A second line compares the simulated engine with itself on one thread more or less: what
FP32's own order of summation does to the same answers.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantlab.allocator import keep_freed_memory
from quantlab.conf_dir import CONF
from quantlab.config import RunConfig
from quantlab.material import fp32_sketches, load
from quantlab.memo import Memo
from quantlab.placement.insert import insert
from quantlab.sweeping.catalogue import register
from quantlab.trial import check, make_plan

SETTINGS = (
    "placement=all bits.symmetric=true",
    "placement=all bits.symmetric=false",
    "placement=gemm bits.symmetric=true",
    "placement=gemm bits.symmetric=false bits.weight_granularity=channel",
    "placement=all bits.symmetric=true method=peg method.k=4",
    "placement=all bits.symmetric=true method=mixed_precision",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--limit", default="null")
    arguments = parser.parse_args()
    register()
    keep_freed_memory()
    place = arguments.shared.absolute()
    rows = [
        "model=hf", "task=qnli", "tracking=off", f"model.path={place}/models/minilm-qnli",
        f"task.data_dir={place}/data/glue/qnli", f"evaluation.limit={arguments.limit}",
    ]  # fmt: skip
    memo = Memo()
    for setting in SETTINGS:
        print(setting)
        with initialize_config_dir(CONF, version_base="1.3"):
            both_engines(instantiate(compose("config", [*rows, *setting.split()])), memo)


def both_engines(config: RunConfig, memo: Memo) -> None:
    shared = (config.model, config.task, config.evaluation)
    material = memo.get("material", shared, lambda: load(*shared))
    fp32 = memo.get("sketches", shared, lambda: fp32_sketches(material, config.calibration))
    plan, _ = make_plan(config, material, check(config, memo), fp32)
    threads, logits = torch.get_num_threads(), []
    for engine, count in (("simulated", threads), ("integer", threads), ("simulated", max(1, threads - 1))):
        torch.set_num_threads(count)
        with insert(material.model, plan, engine):
            logits.append(material.answer(engine).logits)
    torch.set_num_threads(threads)
    compare(f"  integer, {threads} threads", logits[0], logits[1])
    compare(f"  simulated, {max(1, threads - 1)} threads", logits[0], logits[2])


def compare(name: str, base: np.ndarray, found: np.ndarray) -> None:
    differ = base.argmax(-1) != found.argmax(-1)
    margins = np.sort(np.abs(base[differ, 0] - base[differ, 1]))
    shown = f", margins {margins.min():.2g} to {margins.max():.2g}" if len(margins) else ""
    error = np.linalg.norm(found - base) / np.linalg.norm(base)
    print(
        f"{name}: {differ.sum()} of {len(base)} answers differ{shown}; logits differ by {error:.2g} of their norm",
        flush=True,
    )


if __name__ == "__main__":
    main()
