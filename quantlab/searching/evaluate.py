"""Runs candidates: stops as soon as a decision is possible, and reuses layers that two candidates share."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from quantlab.engines.resume import first_layer, layers_of, recorded, resumed
from quantlab.searching.space import Choices, Space
from quantlab.tasks.batching import Batch, on_device, total_rows
from quantlab.tasks.outcomes import outcomes

# Shares of the batches after each of which a candidate may be given up.
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
MB = 1 << 20

Insert = Callable[[Choices], AbstractContextManager[object]]  # quantizes the model as a candidate says


class Runner:
    """Runs candidates over batches.

    One candidate is kept: the outputs of its layers stay in memory, up to ``reuse_mb``. Every other candidate
    of the same alternative starts at the first layer whose sites it decides differently.

    Batches run one after the other, each on all of torch's threads. A trial runs batches side by side, one
    thread each; here that would mix batches up, since ``recorded`` and ``resumed`` change the model's layers
    for one batch at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        insert: Insert,
        space: Space,
        batches: Sequence[Batch],
        reuse_mb: float,
    ):
        self.model, self.batches, self.space = model, batches, space
        self.insert = insert
        self.depth = len(layers_of(model))
        self.layer_of = {site.name: first_layer(site.name, self.depth) for site in space.sites}
        self.most_bytes = reuse_mb * MB
        self.kept: Choices | None = None
        self.states: dict[tuple[int, int], Any] = {}  # of the kept candidate, by batch and layer
        self.latest: dict[tuple[int, int], Any] = {}  # of the candidate that ran last

    @torch.inference_mode()
    def run(self, chosen: Choices, order: Sequence[int]) -> Generator[tuple[int, np.ndarray]]:
        """Yields each batch's number and values, (rows, C), in ``order``: logits of the model's classes, or
        what :func:`outcomes` keeps of predicted tokens."""
        last = self._last_shared(chosen)
        self.latest, room = {}, self.most_bytes
        with self.insert(chosen):
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
                yield number, outcomes(logits, batch, range(logits.shape[-1]))

    def keep(self, chosen: Choices) -> None:
        """Keeps ``chosen``, which must be the candidate that ran last, for the next ones to start from."""
        self.kept, self.states, self.latest = chosen, self.latest, {}

    def _last_shared(self, chosen: Choices) -> int:
        """The last layer up to which ``chosen`` decides all sites as the kept candidate does; -1 if none, or
        if its alternative is another."""
        if self.kept is None or self.space.slots(chosen) != self.space.slots(self.kept):
            return -1
        mine, theirs = self.space.by_site(chosen), self.space.by_site(self.kept)
        differing = [self.layer_of[site] for site in mine if mine[site] != theirs[site]]
        return min(differing, default=self.depth) - 1 if min(differing, default=0) >= 0 else -1


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateOutcomes:
    """A candidate's values, (N, C): logits in the task's order of classes, or what its scores read; NaN in
    rows that are not answered."""

    logits: np.ndarray
    answered: np.ndarray  # bool, (N,)

    @property
    def rows(self) -> int:
        return int(self.answered.sum())

    @property
    def complete(self) -> bool:
        return bool(self.answered.all())


def evaluate_candidate(
    runner: Runner,
    chosen: Choices,
    columns: Sequence[int],
    hopeless: Callable[[CandidateOutcomes], bool] | None,
) -> CandidateOutcomes:
    """Answers growing prefixes of the rows until ``hopeless`` returns True or all rows are answered.

    Batches hold rows of similar length; every prefix holds batches of all lengths. ``columns`` puts the
    model's classes into the task's order.
    """
    count = total_rows(runner.batches)
    predicted = runner.batches[0].predicted
    width, dtype = (len(columns), np.float32) if predicted is None else (1 + predicted.shape[1], np.float64)
    found = CandidateOutcomes(logits=np.full((count, width), np.nan, dtype), answered=np.zeros(count, bool))
    order = spread(len(runner.batches))
    cuts = sorted({0, *(max(1, round(share * len(order))) for share in PREFIXES)})
    if hopeless is None:
        cuts = [0, len(order)]
    with closing(runner.run(chosen, order)) as answers:
        for start, end in pairwise(cuts):
            for number, logits in islice(answers, end - start):
                indices = runner.batches[number].indices
                found.logits[indices] = logits[:, list(columns)] if predicted is None else logits
                found.answered[indices] = True
            if hopeless is not None and not found.complete and hopeless(found):
                break
    return found


def spread(count: int) -> list[int]:
    """0 to ``count - 1`` in van der Corput's order, so that every prefix is spread evenly over the whole.

    The order counts upwards in numbers whose bits are read backwards: 0, 4, 2, 6, 1, 5, 3, 7 for eight.
    """
    width = max(1, (count - 1).bit_length())
    return [k for k in (_reversed_bits(i, width) for i in range(1 << width)) if k < count]


def _reversed_bits(number: int, width: int) -> int:
    """``number``'s ``width`` bits in reverse: 0b001 -> 0b100 for a width of 3."""
    result = 0
    for _ in range(width):
        result = (result << 1) | (number & 1)
        number >>= 1
    return result


def _bytes(output: Any) -> int:
    tensors = output if isinstance(output, tuple) else (output,)
    return sum(
        tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor)
    )
