"""Evaluates and profiles a trial's exported model in the runtime that it is deployed to."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantlab.network.models import LoadedModel
from quantlab.plan.plan import QuantPlan
from quantlab.profiling.profile import Measurements, Profile
from quantlab.profiling.timing import RuntimeSubject, TorchSubject
from quantlab.runtimes.onnx_file import export_onnx
from quantlab.runtimes.runtime import FLOAT, INTEGER, FileRuntime, ProductCounts, planned_products
from quantlab.runtimes.saturation import saturates
from quantlab.tasks.batching import Batch
from quantlab.tasks.scores import Kind, compute
from quantlab.tasks.task import Task
from quantlab.trial.material import Material

MODEL = "model.onnx"


@dataclass(frozen=True, kw_only=True, eq=False)
class DeployedResult:
    """What a runtime answered with an exported model, and how it ran it."""

    logits: np.ndarray  # outcomes, (N, C), in the examples' and the task's order
    products: ProductCounts
    planned: int  # matrix products that the file has in integers
    size_bytes: int
    saturates: bool  # whether the runtime's integer products saturate on this processor

    @property
    def kind(self) -> str:
        """The arithmetic that its latency is of: ``int8``, ``int8 in part`` or ``float``."""
        return self.products.kind(self.planned)


def measure_deployed(
    runtime: FileRuntime,
    profile: Profile,
    material: Material,
    plan: QuantPlan,
    trial_logits: np.ndarray,
    fp32: TorchSubject,
) -> Measurements:
    """Exports the plan, evaluates the file in the runtime, and times it in turns with torch's FP32.

    ``trial_logits`` are torch's outcomes, (N, C). The runtime's metrics and tags have ``deployed`` in their
    names.
    """
    loaded, task, rows = material.loaded, material.task, material.rows
    with tempfile.TemporaryDirectory(prefix="quantlab-") as folder:
        path = write_model(runtime, loaded, plan, material.batches[0].inputs, Path(folder), {})
        deployed = run_deployed(runtime, path, material.batches, loaded.label_columns)
        subject = RuntimeSubject(path=path, runtime=runtime)
        profiled = profile.measure(subject, fp32, rows, loaded.processor)
    return Measurements(
        metrics={
            **deployed_scores(task, rows.labels, deployed.logits, trial_logits),
            **{f"deployed_{name}": value for name, value in profiled.metrics.items()},
            "size_onnx_bytes": float(deployed.size_bytes),
        },
        tags={
            **{f"deployed_{name}": value for name, value in profiled.tags.items()},
            "runtime": runtime.describe(),
            "deployed_arithmetic": deployed.kind,
            "deployed_products": f"{deployed.products}; {deployed.planned} planned in integers",
            "runtime_saturates": str(deployed.kind != FLOAT and deployed.saturates),
            "runtime_fell_back": str(deployed.planned > 0 and deployed.kind != INTEGER),
        },
    )


def write_model(
    runtime: FileRuntime,
    loaded: LoadedModel,
    plan: QuantPlan,
    inputs: Mapping[str, Tensor],
    folder: Path,
    notes: Mapping[str, str],
) -> Path:
    """Exports a plan's model for a runtime into a folder. Returns the file.

    ``inputs`` is any batch of the trial; ``notes`` go into the file's metadata.
    """
    path = folder / MODEL
    export_onnx(loaded.model, plan, inputs, path, notes, runtime.signed)
    return path


def run_deployed(
    runtime: FileRuntime, path: Path, batches: Sequence[Batch], columns: Sequence[int]
) -> DeployedResult:
    """Answers all rows with the exported model in the runtime."""
    session = runtime.open(path, torch.get_num_threads())
    return DeployedResult(
        logits=session.predict(batches, columns),
        products=session.products(),
        planned=planned_products(path),
        size_bytes=sum(file.stat().st_size for file in path.parent.glob(f"{MODEL}*")),
        saturates=saturates(runtime),
    )


def deployed_scores(
    task: Task, labels: np.ndarray, deployed: np.ndarray, trial: np.ndarray
) -> dict[str, float]:
    """Returns the task's first metric of the runtime's outcomes, and their agreement with the trial's.

    Both outcomes are (N, C). Only classes have a share of equal answers.
    """
    primary = task.metrics[0]
    scores = {f"{primary}_deployed": compute([primary], deployed, labels)[primary]}
    if task.kind is Kind.CLASSES:
        scores["agreement_deployed"] = float(np.mean(deployed.argmax(-1) == trial.argmax(-1)))
    return scores
