"""A trial's model as it would be deployed: exported, answered by its runtime, compared with the trial."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from quantlab.network.models import LoadedModel
from quantlab.plan.plan import QuantPlan
from quantlab.profiling.profile import Measurements, Profile
from quantlab.profiling.timing import RuntimeSubject, TorchSubject
from quantlab.runtimes.qdq import export_onnx
from quantlab.runtimes.runtime import FLOAT, INTEGER, FileRuntime, ProductCounts, planned_products
from quantlab.runtimes.saturation import saturates
from quantlab.tasks import metrics
from quantlab.tasks.batching import Batch, Tokenized
from quantlab.tasks.task import Task

MODEL = "model.onnx"


@dataclass(frozen=True, kw_only=True, eq=False)
class DeployedResult:
    """What a runtime made of an exported plan."""

    logits: np.ndarray  # (N, classes), in the examples' and the task's order
    products: ProductCounts
    planned: int  # products that the file has in integers
    size_bytes: int
    saturates: bool  # the runtime's integer products, on this processor

    @property
    def kind(self) -> str:
        """What its latency may be called."""
        return self.products.kind(self.planned)


def write_model(
    runtime: FileRuntime,
    loaded: LoadedModel,
    plan: QuantPlan,
    names: Collection[str],
    folder: Path,
    notes: Mapping[str, str],
) -> Path:
    """Exports the plan's model for a runtime into a folder. Returns the file.

    ``names`` are the tokenizer's inputs; ``notes`` go into the file's metadata.
    """
    path = folder / MODEL
    export_onnx(loaded.model, plan, names, path, notes, runtime.signed)
    return path


def run_deployed(
    runtime: FileRuntime, path: Path, batches: Sequence[Batch], columns: Sequence[int]
) -> DeployedResult:
    """All rows answered by the runtime."""
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
    """The task's first metric of the deployed answers, and the share of them that are the trial's."""
    primary = task.metrics[0]
    scores = {f"{primary}_deployed": metrics.compute([primary], deployed, labels)[primary]}
    if not task.regression:
        scores["agreement_deployed"] = float(np.mean(deployed.argmax(-1) == trial.argmax(-1)))
    return scores


def measure_deployed(
    runtime: FileRuntime,
    loaded: LoadedModel,
    plan: QuantPlan,
    rows: Tokenized,
    batches: Sequence[Batch],
    task: Task,
    trial: np.ndarray,
    profile: Profile,
    fp32: TorchSubject,
) -> Measurements:
    """Exports, answers, and times next to torch's FP32. Numbers of the runtime have ``deployed`` in their
    names."""
    with tempfile.TemporaryDirectory(prefix="quantlab-") as folder:
        path = write_model(runtime, loaded, plan, batches[0].inputs, Path(folder), {})
        found = run_deployed(runtime, path, batches, loaded.label_columns)
        timed = profile.measure(RuntimeSubject(path=path, runtime=runtime), fp32, rows, loaded.tokenizer)
    return Measurements(
        metrics={
            **deployed_scores(task, rows.labels, found.logits, trial),
            **{f"deployed_{name}": value for name, value in timed.metrics.items()},
            "size_onnx_bytes": float(found.size_bytes),
        },
        tags={
            **{f"deployed_{name}": value for name, value in timed.tags.items()},
            "runtime": runtime.describe(),
            "deployed_arithmetic": found.kind,
            "deployed_products": f"{found.products}; {found.planned} planned in integers",
            "runtime_saturates": str(found.kind != FLOAT and found.saturates),
            "runtime_fell_back": str(found.planned > 0 and found.kind != INTEGER),
        },
    )
