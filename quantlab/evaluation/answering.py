"""Runs a model over the evaluation rows, and scores its answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from quantlab.cli.progress import progress
from quantlab.config.checks import at_least, one_of, share, whole
from quantlab.evaluation.significance import accuracy_drop_ci95, metric_drop_ci95, ratio_ci95
from quantlab.evaluation.verdicts import SequentialTest, Verdict
from quantlab.machine.parallel import side_by_side
from quantlab.quant.sqnr import ratio_db
from quantlab.tasks.batching import Batch, on_device
from quantlab.tasks.examples import Examples
from quantlab.tasks.outcomes import in_order, outcomes
from quantlab.tasks.sampling import drawn, held_out
from quantlab.tasks.scores import SCORES, Kind, compute, mean_loss
from quantlab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ORDERS = ("random", "file")
ALL, DECIDED = "all", "decided"
CONSTANT_SHARE = 0.98  # a model with more of its answers in one class ignores its input


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Selects the rows of the evaluation split that are answered, and those of them that are held out.

    Held-out rows choose no trial: they measure the trial that the other rows chose.
    """

    limit: int | None = None  # rows; None: all
    order: str = "random"  # limit draws rows, each class in proportion; or file: it takes the first rows
    seed: int = 0  # of the draw, and of the choice of held-out rows
    holdout: float = 0.5  # share of the answered rows that are held out
    batch_size: int = 16
    until: str = ALL  # or decided: a trial stops answering when it is clear whether it loses over max_drop
    max_drop: float | None = None  # points of the primary score, or percent more perplexity; for decided

    def __post_init__(self) -> None:
        whole("evaluation.batch_size", self.batch_size, 1)
        whole("evaluation.seed", self.seed, 0)
        one_of("evaluation.order", self.order, ORDERS)
        share("evaluation.holdout", self.holdout)
        if self.limit is not None:
            whole("evaluation.limit", self.limit, 1)
        one_of("evaluation.until", self.until, (ALL, DECIDED))
        if self.max_drop is not None:
            at_least("evaluation.max_drop", self.max_drop, 0)
        if (self.max_drop is None) == self.stops:
            needed = "needs evaluation.max_drop, in points or % of perplexity"
            unused = f"takes no evaluation.max_drop, got {self.max_drop!r}: set evaluation.until=decided"
            raise ValueError(f"evaluation.until={self.until} {needed if self.stops else unused}")

    @property
    def stops(self) -> bool:
        """Whether trials stop answering before the end."""
        return self.until == DECIDED

    def require_all_rows(self, what: str) -> None:
        """Raises ValueError where trials stop before the end, which ``what`` cannot use."""
        if self.stops:
            raise ValueError(f"{what} needs the answers to all rows: set evaluation.until=all")

    def rows(self, examples: Examples) -> Examples:
        """Returns the examples that are answered, in the order of the file."""
        if self.limit is None or self.limit >= len(examples):
            return examples
        if self.order == "file":
            return examples.head(self.limit)
        return examples.take(drawn(examples.labels, self.limit, self.seed))

    def test(
        self, metric: str, labels: np.ndarray, reference: np.ndarray, clusters: np.ndarray | None
    ) -> SequentialTest | None:
        """Returns what decides when a trial has answered enough; None where it answers all rows.

        ``metric`` is the primary one. ``labels``, FP32's outcomes ``reference`` and ``clusters`` are those of
        all selected rows.
        """
        if self.max_drop is None:
            return None
        return SequentialTest(
            metric=metric,
            limit=self.max_drop / 100,
            labels=labels,
            reference=reference,
            clusters=clusters,
            seed=self.seed,
        )

    def held_out(self, labels: np.ndarray, clusters: np.ndarray | None = None) -> np.ndarray:
        """Returns True for each answered row that is held out, bool (N,), given their labels and the clusters
        that stay together, each (N,)."""
        return held_out(labels, self.holdout, self.seed, clusters)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """A model's answers to the evaluation rows."""

    logits: np.ndarray  # (N, classes), in the examples' and the task's order
    seconds: float  # that the model took
    verdict: Verdict | None = None  # names the rows that were answered; None: all were


def predict(
    model: PreTrainedModel, batches: Sequence[Batch], columns: Sequence[int], title: str
) -> Predictions:
    """Answers all rows of the batches. ``columns`` puts the model's classes into the task's order."""

    start = time.perf_counter()
    with closing(side_by_side(_answers(model, columns), batches, model.device)) as answers:
        rows = [next(answers) for _ in progress(batches, title)]
    seconds = time.perf_counter() - start
    return Predictions(logits=in_order(rows, batches), seconds=seconds)


def predict_until_decided(
    model: PreTrainedModel,
    test: SequentialTest,
    batched: Callable[[np.ndarray], Sequence[Batch]],
    columns: Sequence[int],
    title: str,
) -> Predictions:
    """Answers the test's chunks of rows one after another until it has its verdict.

    ``batched`` makes the batches of a chunk, each batch knowing its rows. The logits are those of the
    verdict's rows.
    """
    start, answer = time.perf_counter(), _answers(model, columns)
    batches: list[Batch] = []
    values: list[np.ndarray] = []
    for chunk in progress(test.chunks(), title):
        batches += (of_chunk := batched(chunk))
        values += side_by_side(answer, of_chunk, model.device)
        rows, logits = np.concatenate([batch.indices for batch in batches]), np.concatenate(values)
        if verdict := test.verdict(rows, logits):
            break
    seconds = time.perf_counter() - start
    return Predictions(logits=logits[np.argsort(rows)], seconds=seconds, verdict=verdict)


def _answers(model: PreTrainedModel, columns: Sequence[int]) -> Callable[[Batch], np.ndarray]:
    """What the model makes of a batch: outcomes (rows, C)."""

    @torch.inference_mode()
    def answer(batch: Batch) -> np.ndarray:
        return outcomes(model(**on_device(batch, model.device)).logits, batch, columns)

    return answer


def score(
    task: Task,
    labels: np.ndarray,
    logits: np.ndarray,
    reference: np.ndarray,
    clusters: np.ndarray | None = None,
) -> dict[str, float]:
    """Returns the task's metrics by name, and the differences from the FP32 model.

    ``labels`` is (N,); ``logits`` and the FP32 model's ``reference`` are (N, C), as the task's kind says.
    ``*_drop`` is the metric of FP32 minus that of ``logits``, and ``*_ratio`` a perplexity over FP32's, with
    a 95 % interval that is paired over examples, or over ``clusters`` of them (N,). With r the reference and
    x the logits of classes, ``logits_sqnr_db`` is 10 log10(sum r^2 / sum (r - x)^2): infinite if they are
    equal.
    """
    primary = SCORES[task.metrics[0]].name
    scores = compute(task.metrics, logits, labels)
    scores["loss"] = mean_loss(task.kind, logits, labels)
    scores[f"{primary}_fp32"] = compute([primary], reference, labels)[primary]
    if SCORES[primary].relative:
        ratio = scores[primary] / scores[f"{primary}_fp32"]
        scores |= _named(f"{primary}_ratio", ratio, ratio_ci95(primary, reference, logits, clusters))
    else:
        drop = scores[f"{primary}_fp32"] - scores[primary]
        interval = _drop_ci95(task, labels, logits, reference, clusters)
        scores |= _named(f"{primary}_drop", drop, interval)
    if task.kind is Kind.CLASSES:
        answers = logits.argmax(-1)
        scores["agreement_fp32"] = float(np.mean(answers == reference.argmax(-1)))
        scores["constant_prediction"] = float(largest_share(answers) >= CONSTANT_SHARE)
    if task.kind in (Kind.CLASSES, Kind.REGRESSION):
        wide = reference.astype(np.float64)
        scores["logits_sqnr_db"] = ratio_db(float((wide**2).sum()), float(((wide - logits) ** 2).sum()))
    return scores


def _named(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_ci95_low": interval[0], f"{name}_ci95_high": interval[1]}


def largest_share(classes: np.ndarray) -> float:
    """Returns the share of the most frequent value, in 0..1."""
    return float(np.unique(classes, return_counts=True)[1].max() / len(classes))


def _drop_ci95(
    task: Task, labels: np.ndarray, logits: np.ndarray, reference: np.ndarray, clusters: np.ndarray | None
) -> tuple[float, float]:
    primary = SCORES[task.metrics[0]]
    right, reference_right = primary.right(logits, labels), primary.right(reference, labels)
    if right is not None and reference_right is not None:
        return accuracy_drop_ci95(reference_right, right, clusters)
    if len(labels) < 3:
        return math.nan, math.nan
    return metric_drop_ci95(task.metrics[0], reference, logits, labels)
