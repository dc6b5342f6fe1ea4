"""Predictions, and what they are worth."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from quantlab.cli.progress import progress
from quantlab.config.checks import one_of, share, whole
from quantlab.evaluation.significance import accuracy_drop_ci95, metric_drop_ci95
from quantlab.machine.parallel import side_by_side
from quantlab.quant.sqnr import ratio_db
from quantlab.tasks import metrics
from quantlab.tasks.batching import Batch, on_device, total_rows
from quantlab.tasks.sampling import drawn, held_out
from quantlab.tasks.task import Examples, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ORDERS = ("random", "file")
CONSTANT_SHARE = 0.98  # of the answers in one class: the model has stopped looking at its input


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which rows of the evaluation split are answered, and which of these choose nothing."""

    limit: int | None = None  # rows; None: all
    order: str = "random"  # or file: whether limit draws rows, every class in its share, or takes the first
    seed: int = 0  # of the draw and of the split
    holdout: float = 0.5  # share of the answered rows that measure the chosen trial and choose none
    batch_size: int = 16

    def __post_init__(self) -> None:
        whole("evaluation.batch_size", self.batch_size, 1)
        whole("evaluation.seed", self.seed, 0)
        one_of("evaluation.order", self.order, ORDERS)
        share("evaluation.holdout", self.holdout)
        if self.limit is not None:
            whole("evaluation.limit", self.limit, 1)

    def rows(self, examples: Examples) -> Examples:
        """The examples that are answered, in the order of the file."""
        if self.limit is None or self.limit >= len(examples):
            return examples
        if self.order == "file":
            return examples.head(self.limit)
        return examples.take(drawn(examples.labels, self.limit, self.seed))

    def held_out(self, labels: np.ndarray) -> np.ndarray:
        """Which of the answered rows choose nothing, bool (N,), found from their labels (N,)."""
        return held_out(labels, self.holdout, self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Logits of shape (N, classes) in the examples' and the task's order, and the seconds they took."""

    logits: np.ndarray
    seconds: float


def predict(
    model: PreTrainedModel, batches: Sequence[Batch], columns: Sequence[int], title: str
) -> Predictions:
    """Answers all rows of the batches; ``columns`` puts the model's classes into the task's order."""

    @torch.inference_mode()
    def answer(batch: Batch) -> np.ndarray:
        output: np.ndarray = model(**on_device(batch, model.device)).logits.float().cpu().numpy()
        return output[:, list(columns)]

    logits = np.empty((total_rows(batches), len(columns)), dtype=np.float32)
    start = time.perf_counter()
    with closing(side_by_side(answer, batches, model.device)) as answers:
        for batch in progress(batches, title):
            logits[batch.indices] = next(answers)
    return Predictions(logits=logits, seconds=time.perf_counter() - start)


def score(task: Task, labels: np.ndarray, logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The task's metrics, and the differences to the FP32 logits ``reference``.

    ``*_drop`` is FP32 less quantized, so a loss is positive; its interval is paired over examples. An SQNR
    without noise is infinite.
    """
    primary = task.metrics[0]
    scores = metrics.compute(task.metrics, logits, labels)
    scores["loss"] = metrics.loss(logits, labels, task.regression)
    scores[f"{primary}_fp32"] = metrics.compute([primary], reference, labels)[primary]
    scores[f"{primary}_drop"] = scores[f"{primary}_fp32"] - scores[primary]
    low, high = _drop_ci95(task, labels, logits, reference)
    scores[f"{primary}_drop_ci95_low"], scores[f"{primary}_drop_ci95_high"] = low, high
    if not task.regression:
        answers = logits.argmax(-1)
        scores["agreement_fp32"] = float(np.mean(answers == reference.argmax(-1)))
        scores["constant_prediction"] = float(largest_share(answers) >= CONSTANT_SHARE)
    wide = reference.astype(np.float64)
    scores["logits_sqnr_db"] = ratio_db(float((wide**2).sum()), float(((wide - logits) ** 2).sum()))
    return scores


def largest_share(classes: np.ndarray) -> float:
    """The share of the most frequent value."""
    return float(np.unique(classes, return_counts=True)[1].max() / len(classes))


def _drop_ci95(
    task: Task, labels: np.ndarray, logits: np.ndarray, reference: np.ndarray
) -> tuple[float, float]:
    if task.metrics[0] == "accuracy":
        return accuracy_drop_ci95(reference.argmax(-1) == labels, logits.argmax(-1) == labels)
    if len(labels) < 3:
        return math.nan, math.nan
    return metric_drop_ci95(task.metrics[0], reference, logits, labels)
