"""Answers of candidates, no more of them than a decision needs, and no layer computed twice for nothing."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from quantlab.engines.insert import InsertActivations
from quantlab.engines.resume import first_layer, layers_of, recorded, resumed
from quantlab.evaluation.significance import accuracy_drop_ci95, accuracy_drop_upper95, exceeds_drop_p
from quantlab.plan.plan import ActivationQuant
from quantlab.searching.space import Choices, Space
from quantlab.tasks import metrics
from quantlab.tasks.batching import Batch, on_device, total_rows
from quantlab.tasks.task import Task

PREFIXES = (
    1 / 16,
    1 / 8,
    1 / 4,
    1 / 2,
    1.0,
)  # of the batches, after each of which a candidate may be given up
MB = 1 << 20

Activations = Callable[[Choices], tuple[ActivationQuant, ...]]


class Runner:
    """Runs candidates over batches. Of one of them, the kept one, the layers' outputs stay in memory, up to
    ``reuse_mb``; another begins where it first differs from that one."""

    def __init__(
        self,
        model: PreTrainedModel,
        insert_activations: InsertActivations,
        activations: Activations,
        space: Space,
        batches: Sequence[Batch],
        reuse_mb: float,
    ):
        self.model, self.batches, self.space = model, batches, space
        self.insert_activations, self.activations = insert_activations, activations
        self.depth = len(layers_of(model))
        self.layer_of = {site.name: first_layer(site.name, self.depth) for site in space.sites}
        self.most_bytes = reuse_mb * MB
        self.kept: Choices | None = None
        self.states: dict[tuple[int, int], Any] = {}  # of the kept candidate, by batch and layer
        self.latest: dict[tuple[int, int], Any] = {}  # of the one that ran last

    @torch.inference_mode()
    def run(self, chosen: Choices, order: Sequence[int]) -> Generator[tuple[int, np.ndarray]]:
        """For each of these batches, its number and the candidate's logits, (rows, the model's classes)."""
        last = self._last_shared(chosen)
        self.latest, room = {}, self.most_bytes
        with self.insert_activations(self.activations(chosen)):
            for number in order:
                outputs: dict[int, Any] = {}
                start = (number, last)
                with ExitStack() as stack:
                    if start in self.states:
                        stack.enter_context(resumed(self.model, last, self.states[start]))
                    if room > 0:
                        stack.enter_context(recorded(self.model, outputs))
                    batch = self.batches[number]
                    logits = self.model(**on_device(batch, self.model.device)).logits
                for layer, output in outputs.items():
                    known = self.states.get((number, layer)) if layer <= last else None
                    self.latest[number, layer] = output if known is None else known
                    room -= _bytes(output)
                yield number, logits.float().cpu().numpy()

    def keep(self, chosen: Choices) -> None:
        """From now on ``chosen``, which ran last, is the candidate that others begin from."""
        self.kept, self.states, self.latest = chosen, self.latest, {}

    def _last_shared(self, chosen: Choices) -> int:
        """The last layer up to which a candidate is the kept one; -1 where there is none."""
        if self.kept is None:
            return -1
        mine, theirs = self.space.by_site(chosen), self.space.by_site(self.kept)
        differing = [self.layer_of[site] for site in mine if mine[site] != theirs[site]]
        return min(differing, default=self.depth) - 1 if min(differing, default=0) >= 0 else -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Logits of shape (N, classes) in the task's order, NaN where a row was not answered."""

    logits: np.ndarray
    answered: np.ndarray  # bool, (N,)

    @property
    def rows(self) -> int:
        return int(self.answered.sum())

    @property
    def complete(self) -> bool:
        return bool(self.answered.all())


def evaluate(
    runner: Runner, chosen: Choices, columns: Sequence[int], hopeless: Callable[[Outcome], bool] | None
) -> Outcome:
    """A candidate's answers to growing prefixes of the rows, until ``hopeless`` or all are answered.

    Batches hold rows of like length; each prefix takes them evenly from all lengths.
    """
    count = total_rows(runner.batches)
    outcome = Outcome(
        logits=np.full((count, len(columns)), np.nan, np.float32), answered=np.zeros(count, bool)
    )
    order = spread(len(runner.batches))
    cuts = sorted({0, *(max(1, round(share * len(order))) for share in PREFIXES)})
    if hopeless is None:
        cuts = [0, len(order)]
    with closing(runner.run(chosen, order)) as answers:
        for start, end in pairwise(cuts):
            for number, logits in islice(answers, end - start):
                indices = runner.batches[number].indices
                outcome.logits[indices], outcome.answered[indices] = logits[:, list(columns)], True
            if hopeless is not None and not outcome.complete and hopeless(outcome):
                break
    return outcome


def spread(count: int) -> list[int]:
    """0 to ``count - 1`` in van der Corput's order: every prefix lies evenly over all."""
    bits = max(1, (count - 1).bit_length())
    return [k for k in (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)) if k < count]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Compares candidates with the reference's logits on the same rows."""

    task: Task
    labels: np.ndarray
    reference: np.ndarray

    @property
    def counts_right(self) -> bool:
        """Whether the task's first metric is a mean of right and wrong answers, which pairs can test."""
        return self.task.metrics[0] == "accuracy"

    def right(self, outcome: Outcome) -> np.ndarray:
        """Which of the answered rows are right. NaN is wrong."""
        logits = outcome.logits[outcome.answered]
        answers = np.where(np.isnan(logits).any(1), -1, logits.argmax(-1))
        right: np.ndarray = answers == self.labels[outcome.answered]
        return right

    def drop(self, outcome: Outcome) -> float:
        """The reference's metric less the candidate's on the answered rows, in points."""
        if self.counts_right:
            return float(100 * (self.reference_right(outcome).mean() - self.right(outcome).mean()))
        rows, primary = outcome.answered, self.task.metrics[0]
        reference = metrics.compute([primary], self.reference[rows], self.labels[rows])[primary]
        return 100 * (reference - self.metric(outcome))

    def metric(self, outcome: Outcome) -> float:
        """The task's first metric on the answered rows."""
        if self.counts_right:
            return float(self.right(outcome).mean())
        rows, primary = outcome.answered, self.task.metrics[0]
        logits = np.nan_to_num(outcome.logits[rows])
        return metrics.compute([primary], logits, self.labels[rows])[primary]

    def reference_right(self, outcome: Outcome) -> np.ndarray:
        """Which of the same rows the reference has right."""
        right: np.ndarray = (self.reference.argmax(-1) == self.labels)[outcome.answered]
        return right

    def interval(self, outcome: Outcome) -> tuple[float, float, float]:
        """95 % interval of the drop, and its one-sided 95 % upper bound, in points; NaN where outcomes do not
        pair."""
        if not self.counts_right:
            return (np.nan,) * 3
        pair = (self.reference_right(outcome), self.right(outcome))
        low, high = accuracy_drop_ci95(*pair)
        return 100 * low, 100 * high, 100 * accuracy_drop_upper95(*pair)

    def exceeds_p(self, outcome: Outcome, limit: float) -> float:
        """P-value of a drop beyond ``limit`` points."""
        return exceeds_drop_p(self.reference_right(outcome), self.right(outcome), limit / 100)

    def behind_p(self, outcome: Outcome, best: np.ndarray) -> float:
        """P-value of being behind another candidate, which has ``best`` right of all rows."""
        return exceeds_drop_p(best[outcome.answered], self.right(outcome), 0.0)


def _bytes(output: Any) -> int:
    tensors = output if isinstance(output, tuple) else (output,)
    return sum(
        tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor)
    )
