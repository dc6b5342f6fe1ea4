"""What quantization costs and gains on a GPU: ``python tests/benchmarks/gpu.py [part]``.

``products``  products of 4,096 rows in FP32, TF32, BF16 and integers (``torch._int_mm``), and quantizers,
              as they are and compiled
``forward``   BERT-base on 32 rows of 128 tokens: FP32, TF32, BF16, as they are and compiled, and W8A8 in
              integers and simulated; the answers against the CPU's, and the memory of the GPU
``sweep``     the eleven rows of ``+sweeps=paper_table`` on 512 rows of a 3-layer BERT, from start to end

Weights are random: time does not depend on them. Times are medians by CUDA events, in turns. Takes at most
four minutes. Without a GPU it says so and ends with status 1; ``--rehearse`` goes through all of it on the
CPU, small, to see that it runs: those times mean nothing.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from random_bert import material
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import ENGINES, insert
from quantlab.kernels.products import IntegerTensor, IntegerWeight, IntMm
from quantlab.kernels.snapper import Snapper
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.sites import Placement
from quantlab.plan.plan import QuantPlan
from quantlab.profiling.clocks import MB, peak_memory, times_of
from quantlab.tasks.batching import Batch, on_device

PARTS = ("products", "forward", "sweep")
ROUNDS, WARM = 15, 3

Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.rehearse:
        print("no CUDA device")
        raise SystemExit(1)
    small = arguments.rehearse
    device = torch.device("cpu" if small else "cuda")
    name = "a rehearsal on the CPU" if small else torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    run = {"products": products, "forward": forward, "sweep": sweep}
    for part in arguments.parts or PARTS:
        begun = time.perf_counter()
        run[part](device, small)
        print(f"{part}: {time.perf_counter() - begun:.0f} s in all", flush=True)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Lets FP32 products round their factors to TF32, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def timed(runs: Mapping[str, Run], device: torch.device, title: str) -> None:
    """Prints the median time of each run, all in turns, and its ratio to the first one's."""

    def once(name: str) -> float:
        def run() -> None:
            runs[name]()

        with torch.inference_mode(), tf32("TF32" in name):
            return times_of(run, device.type, 1)[0]

    for name in runs:
        for _ in range(WARM):
            once(name)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name in runs:
            times[name].append(once(name))
    first = median(times[next(iter(runs))])
    print(title)
    for name, found in times.items():
        print(f"  {name:42} {median(found):9.3f} ms  {median(found) / first:6.2f}", flush=True)


def products(device: torch.device, small: bool) -> None:
    """Products and quantizers of BERT-base's shapes."""
    rows = 64 if small else 4096
    compiled, snapped = torch.compile(linear, dynamic=False), torch.compile(snap, dynamic=False)
    compiled_linear = torch.compile(lambda x, weight: linear(snap(x), weight), dynamic=False)
    for outputs, inputs in ((768, 768), (3072, 768), (768, 3072)):
        x, weight = torch.randn(rows, inputs, device=device), torch.randn(outputs, inputs, device=device)
        x16, weight16 = x.bfloat16(), weight.bfloat16()
        scale = weight.abs().amax(1) / 127
        product = IntMm(
            IntegerWeight(
                integers=(weight / scale[:, None]).round().to(torch.int8),
                scale=scale,
                zero_point=torch.zeros(outputs, dtype=torch.int32, device=device),
            )
        )
        snapper = Snapper(torch.tensor(0.03, device=device), torch.tensor(0.0, device=device), -128, 127)
        _, integers = snapper.integers(x, False)
        assert integers is not None
        given = IntegerTensor(integers=integers, scale=0.03, zero_point=128)
        signed = (integers.int() - 128).to(torch.int8)
        runs: dict[str, Run] = {
            "FP32": partial(linear, x, weight),
            "TF32": partial(linear, x, weight),
            "BF16": partial(linear, x16, weight16),
            "BF16, compiled": partial(compiled, x16, weight16),
            "integers, with scales": partial(product, given, None),
            "integers, the sums alone": partial(torch._int_mm, signed, product.weight),
            "quantize-dequantize": partial(snapper, x),
            "quantize-dequantize, compiled": partial(snapped, x),
            "quantize-dequantize and FP32": partial(quantized_linear, snapper, x, weight),
            "quantize-dequantize and FP32, compiled": partial(compiled_linear, x, weight),
        }
        timed(runs, device, f"{rows:,} rows, {inputs} to {outputs}")


def quantized_linear(snapper: Snapper, x: Tensor, weight: Tensor) -> Tensor:
    return linear(snapper(x), weight)


def snap(x: Tensor) -> Tensor:
    """Quantize-dequantize as :class:`Snapper` has it, for a compiler to see through."""
    return (x * (1 / 0.03)).round().clamp(-128, 127) * 0.03


def forward(device: torch.device, small: bool) -> None:
    """BERT-base: answers, times and memory."""
    config = BertConfig(num_hidden_layers=2) if small else BertConfig()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).requires_grad_(False).eval()
    count, length = (2, 32) if small else (32, 128)
    batch = Batch(
        inputs={
            "input_ids": torch.randint(1000, 30000, (count, length)),
            "attention_mask": torch.ones(count, length, dtype=torch.long),
        },
        indices=np.arange(count),
    )
    plan, given = plan_of(model, batch), on_device(batch, device)
    engines = {"FP32": (QuantPlan(), "simulated"), **{f"W8A8 {name}": (plan, name) for name in ENGINES}}
    with ExitStack() as stack, torch.inference_mode():
        networks = {name: copy.deepcopy(model) for name in (*engines, "BF16")}
        for name, (own, engine) in engines.items():
            cpus = answer_of(networks[name], own, "simulated", batch.inputs)
            networks[name].to(device)
            stack.enter_context(insert(networks[name], own, engine))
            ours = networks[name](**given).logits.cpu()
            apart = float((ours - cpus).abs().max() / cpus.std())
            print(f"{name}: largest difference from the CPU's answers {apart:.1e} standard deviations")
        networks["BF16"].to(device, torch.bfloat16)
        networks["TF32"] = networks["FP32"]
        runs: dict[str, Run] = {name: partial(network, **given) for name, network in networks.items()}
        for name in ("FP32", "TF32", "BF16"):
            runs[f"{name}, compiled"] = partial(torch.compile(networks[name], dynamic=False), **given)
        timed(runs, device, f"BERT with {config.num_hidden_layers} layers, {count} rows of {length} tokens")
        for name, run in runs.items():
            with tf32("TF32" in name):
                memory(name, run, device)


def answer_of(model: PreTrainedModel, plan: QuantPlan, engine: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """The answers of a model with a plan in it."""
    with insert(model, plan, engine):
        logits: Tensor = model(**inputs).logits
    return logits


def plan_of(model: PreTrainedModel, batch: Batch) -> QuantPlan:
    """W8A8 at every site, symmetric, with min-max ranges of the batch."""
    sites, method, bits, calibration = all_sites(model), Uniform(), Bits(symmetric=True), MinMax()
    sites = Placement(at="tensor").select(sites)
    weights = plan_weights(model, method, bits, calibration)
    sketches = observe(model, sites, [batch])
    return QuantPlan(activations=method.activations(sites, sketches, bits, calibration), weights=weights)


def memory(name: str, run: Run, device: torch.device) -> None:
    """Prints what one more run takes of the GPU beyond the networks, which are all there."""
    if device.type != "cuda":
        return
    held = torch.cuda.memory_allocated() / MB
    found = peak_memory(lambda: none(run), device.type)
    allocated, reserved = found["peak_vram_allocated_mb"] - held, found["peak_vram_reserved_mb"]
    print(f"  {name:42} {allocated:8.0f} MB allocated for a run, {reserved:8.0f} MB reserved by the process")


def none(run: Run) -> None:
    run()


def sweep(device: torch.device, small: bool) -> None:
    """The paper's eleven rows through the command line."""
    with tempfile.TemporaryDirectory(prefix="quantlab-") as name:
        folder = Path(name)
        layers, rows, width = (2, 16, 64) if small else (3, 512, 768)
        model = material(folder, layers, rows, width)
        command = [sys.executable, "-m", "quantlab.run", "-m", "+sweeps=paper_table", *model]
        command += ["task.max_length=128", f"evaluation.limit={rows}", f"model.device={device.type}"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        print(done.stdout if done.returncode == 0 else done.stdout + done.stderr)
        print(f"11 rows of the table on {rows} rows: {time.perf_counter() - begun:.1f} s, start included")


if __name__ == "__main__":
    main()
