"""What quantization costs and gains here: ``python tests/benchmarks/speed.py [forward] [table] [deployed]
[memory]``.

``forward``   W8A8: integer engine, simulated engine and FP32 in turns, on the shapes of BERT-base (8 texts of
128 tokens), of SmolLM2-135M (512 tokens) and of a ViT-S/14 (8 images); --only and --rounds make it shorter
``table``     the paper's table on minilm-qnli, all 5,463 pairs, from start to end
``deployed``  BERT-base INT8 on ONNX Runtime, OpenVINO and torch.compile against FP32 on all and in torch, in
turns; torch.compile's INT8 needs torchao and is left out without it
``memory``    peak memory of a calibration pass with 32 and with 4,096 samples, all cut to the same length

Weights are random: time does not depend on them. ``table`` and ``memory`` need ``--shared``, the folder of
the fine-tuned checkpoint and of GLUE's data, and are skipped without it.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from compiled import Compiled, has_int8
from compiled import saturates as compiled_saturates
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    Dinov2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.machine.allocator import keep_freed_memory
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.sites import Placement
from quantlab.plan.plan import QuantPlan
from quantlab.profiling.clocks import wall_ms
from quantlab.profiling.profile import TimedProfile, Turns, speedup
from quantlab.profiling.timing import RuntimeSubject, Subject, TorchSubject
from quantlab.runtimes.onnx_file import export_onnx
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.openvino import OpenVino
from quantlab.runtimes.saturation import saturates
from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import CLASSES

ROWS, LENGTH, THREADS = 8, 128, torch.get_num_threads()
CUT = 48  # tokens: the longest batch of either number of samples is as long as the other's
QNLI = ("model=hf", "task=qnli", "tracking=off", "profile=off")

PEAK = """
import sys, torch
from quantlab.profiling.clocks import sampled_peak_mb, resident_mb
from quantlab.calibration.estimators import MinMax
from quantlab.evaluation.answering import Evaluation
from quantlab.trial.material import fp32_sketches, load_material
from quantlab.storage.memo import Memo
from quantlab.network.models import Checkpoint
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from quantlab.cli.conf_dir import CONF
from quantlab.cli.catalogue import register
register()
with initialize_config_dir(CONF, version_base="1.3"):
    config = instantiate(compose("config", sys.argv[2:]))
material = load_material(config.model, config.task, config.evaluation, Memo())
fp32_sketches(material, MinMax(samples=8))
before = resident_mb()
print(sampled_peak_mb(lambda: fp32_sketches(material, MinMax(samples=int(sys.argv[1])))) - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"forward": forward, "table": table, "deployed": deployed, "memory": memory}
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=list(parts))
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS), help="of forward")
    parser.add_argument("--rounds", type=int, default=15, help="of forward")
    parser.add_argument("--shared", type=Path, help="holds models/minilm-qnli and data/glue/qnli")
    arguments = parser.parse_args()
    keep_freed_memory()
    for name in arguments.parts:
        if name in ("table", "memory") and arguments.shared is None:
            print(f"{name}: skipped, it needs --shared")
        else:
            parts[name](arguments)


def forward(arguments: argparse.Namespace) -> None:
    for name in arguments.only:
        forward_of(name, arguments.rounds)


def forward_of(name: str, rounds: int) -> None:
    model, batch = NETWORKS[name]()
    runs: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for at in ("tensor", "operand"):
            plan = w8a8(model, batch, at)
            for engine in ("integer", "simulated"):
                engined = copy.deepcopy(model)
                stack.enter_context(insert(engined, plan, engine))
                runs[f"{engine}, {'all sites' if at == 'tensor' else 'gemm'}"] = lambda m=engined: m(
                    **batch.inputs
                )
        runs["FP32"] = lambda: model(**batch.inputs)
        for run in runs.values():
            run()
        times: dict[str, list[Turns]] = {name: [] for name in runs}
        for _ in range(rounds):
            for run_name, run in runs.items():
                times[run_name].append([np.array([wall_ms(run)])])
    show(f"forward of {name}", times, "FP32")


def deployed(_: argparse.Namespace) -> None:
    model, batch = bert_base()
    with tempfile.TemporaryDirectory(prefix="quantlab-") as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        files = {"FP32": QuantPlan(), "INT8": w8a8(model, batch, "operand", granularity="channel")}
        subjects: dict[str, Subject] = {
            "torch FP32": TorchSubject(
                head=CLASSES, folder=folder / "model", plan=QuantPlan(), engine="simulated", device="cpu"
            ),
            "torch integer": TorchSubject(
                head=CLASSES, folder=folder / "model", plan=files["INT8"], engine="integer", device="cpu"
            ),
            "torch.compile FP32": Compiled(folder=folder / "model", head=CLASSES, int8=False),
        }
        if has_int8():
            subjects["torch.compile INT8"] = Compiled(folder=folder / "model", head=CLASSES, int8=True)
            print(f"torch.compile INT8 saturates here: {compiled_saturates()}")
        runtimes = (OnnxRuntime(), OpenVino())
        for runtime in runtimes:
            print(f"{runtime.describe()} INT8 saturates here: {saturates(runtime)}")
        for precision, plan in files.items():
            for runtime in runtimes:
                path = folder / f"{runtime.package} {precision}.onnx"
                export_onnx(model, plan, batch.inputs, path, {}, runtime.signed)
                subjects[f"{runtime.package} {precision}"] = RuntimeSubject(path=path, runtime=runtime)
                print(f"{runtime.describe()} {precision}: {runtime.open(path, THREADS).products()}")
        size = {precision: (folder / f"onnxruntime {precision}.onnx").stat().st_size for precision in files}
        print(f"file: {size['INT8'] / size['FP32']:.3f} of FP32's {size['FP32']:,} bytes")
        profile = TimedProfile(warmup=3, iterations=10, seconds=5, batch_size=ROWS, length=LENGTH)
        inputs = {name: values.numpy() for name, values in batch.inputs.items()}
        turns, _ = profile.in_turns(list(subjects.values()), inputs, THREADS)
    times = dict(zip(subjects, turns, strict=True))
    for base in ("torch FP32", "onnxruntime FP32", "openvino FP32"):
        show("deployed", times, base)


def table(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="quantlab-") as folder:
        command = [sys.executable, "-m", "quantlab.run", "-m", "+sweeps=paper_table", "evaluation.limit=null"]
        command += qnli(arguments.shared)
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        print(done.stdout[-3000:] if done.returncode == 0 else done.stderr[-3000:])
        print(f"table: {time.perf_counter() - start:.0f} s from start to end")


def memory(arguments: argparse.Namespace) -> None:
    peaks = []
    for samples in (32, 4096):
        command = [
            sys.executable,
            "-c",
            PEAK,
            str(samples),
            *qnli(arguments.shared),
            f"task.max_length={CUT}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
        print(f"memory: {samples} samples, {peaks[-1]:.1f} MB above what the process had before")


def qnli(shared: Path | None) -> list[str]:
    assert shared is not None
    return [
        *QNLI,
        f"model.path={shared.absolute()}/models/minilm-qnli",
        f"task.data_dir={shared.absolute()}/data/glue/qnli",
    ]


def bert_base() -> tuple[PreTrainedModel, Batch]:
    return random_weights(AutoModelForSequenceClassification, BertConfig(num_labels=2)), tokens(ROWS, LENGTH)


def smollm2() -> tuple[PreTrainedModel, Batch]:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return random_weights(AutoModelForCausalLM, config), tokens(1, 512)


def vit() -> tuple[PreTrainedModel, Batch]:
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, patch_size=14, image_size=224, num_labels=10
    )
    pixels = torch.randn(ROWS, 3, 224, 224)
    model = random_weights(AutoModelForImageClassification, config)
    return model, Batch(inputs={"pixel_values": pixels}, indices=np.arange(ROWS))


NETWORKS = {"bert-base": bert_base, "smollm2": smollm2, "vit": vit}


def random_weights(auto: type, config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def tokens(rows: int, length: int) -> Batch:
    ids = torch.randint(1000, 30000, (rows, length))
    return Batch(inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)}, indices=np.arange(rows))


def w8a8(model: PreTrainedModel, batch: Batch, at: str, granularity: str = "tensor") -> QuantPlan:
    bits, calibration = Bits(symmetric=True, weight_granularity=granularity), MinMax()
    sites = Placement(at=at).select(all_sites(model))
    weights = plan_weights(model, Uniform(), bits, calibration)
    activations = Uniform().activations(sites, observe(model, sites, [batch]), bits, calibration)
    return QuantPlan(activations=activations, weights=weights)


def show(title: str, times: Mapping[str, Sequence[Turns]], base: str) -> None:
    """Each subject's p50, and its time by the base's, with the 95 % interval over processes, or rounds in
    one."""
    for name, taken in times.items():
        p50 = np.median(np.concatenate([turn for turns in taken for turn in turns]))
        if name == base:
            print(f"{title}: {name}: p50 {p50:.0f} ms", flush=True)
            continue
        ratio = speedup(taken, times[base])
        interval = f"{ratio['speedup_ci95_low']:.3f} to {ratio['speedup_ci95_high']:.3f}"
        print(
            f"{title}: {name}: p50 {p50:.0f} ms, {ratio['speedup_vs_fp32']:.3f} of {base} ({interval})",
            flush=True,
        )


if __name__ == "__main__":
    main()
