"""The training loop: AdamW, linear warm-up and decay, batches of like length, BF16 where that is fast.

A run that is killed goes on from its last saved step, and ends with the weights of one that was not.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from quantlab.evaluation.answering import CONSTANT_SHARE
from quantlab.network.models import Recipe
from quantlab.storage.files import whole_file
from quantlab.tasks.batching import Batch, Encoded, by_length, on_device
from quantlab.training.losses import Loss
from quantlab.training.training import Course

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOL = 50  # batches whose rows are sorted by length together: many for little padding, few to stay random
MAX_GRAD_NORM = 1.0
SAVE_SECONDS = 120.0  # between two saved states
WATCHED = 256  # answers to training rows: a classifier that gave all of these one class does not learn

History = list[dict[str, float]]  # a step's loss, penalty and learning rate
log = logging.getLogger(__name__)


def train(
    model: PreTrainedModel,
    processor: Any,
    rows: Encoded,
    recipe: Recipe,
    loss: Loss,
    course: Course | None = None,
    state: Path | None = None,
) -> History:
    """Trains the model in place, and returns the history of the steps.

    ``state`` is the file that a run is saved in, and goes on from if it is there. Raises FloatingPointError
    if loss or gradient become NaN or infinite: the model, and the state, are those before that step. Raises
    ValueError for BF16 where the hardware has none, and where a classifier gives all rows one class in the
    end; it warns as soon as it does.
    """
    run = _Run(model, processor, rows, recipe, loss, course or Course(), state)
    model.train(recipe.dropout)
    with training_progress() as bar:
        shown = bar.add_task("training", total=run.steps, loss=math.nan, rate=recipe.learning_rate)
        for done in run:
            last = run.history[-1]
            bar.update(shown, completed=done, loss=last["loss"], rate=last["learning_rate"])
    model.eval()  # type: ignore[no-untyped-call]
    if (answer := constant_answer(run.watched)) is not None:
        if state is not None:  # going on from it would end here again
            state.unlink(missing_ok=True)
        raise ValueError(
            f"training did not work: the last {WATCHED} training rows all got class {answer}, so nothing is "
            "stored; try a lower learning rate, more epochs or another seed"
        )
    return run.history


class _Run:
    """A training under way: iterating over it yields the number of steps that are done after each one."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        rows: Encoded,
        recipe: Recipe,
        loss: Loss,
        course: Course,
        state: Path | None,
    ) -> None:
        self.model, self.processor, self.rows = model, processor, rows
        self.recipe, self.loss, self.course, self.state = recipe, loss, course, state
        self.bf16 = _bf16(recipe, model.device)
        groups = [*parameter_groups(model, recipe.weight_decay), *course.groups]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        self.batches = recipe.epochs * math.ceil(len(rows) / rows.most_rows(recipe.batch_size))
        self.steps = math.ceil(self.batches / recipe.accumulation)
        # Imported here, so that errors of the command line do not wait for it.
        from transformers import get_linear_schedule_with_warmup

        warmup = round(recipe.warmup_fraction * self.steps)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, self.steps)  # type: ignore[no-untyped-call]
        self.history: History = []
        self.watched: deque[tuple[int, int]] = deque(maxlen=WATCHED)  # answer and label of the last rows
        self.saved = time.monotonic()

    def __iter__(self) -> Iterator[int]:
        if self.state is not None and self.state.is_file():
            self._restore(self.state)
        done = len(self.history)
        batches = chain.from_iterable(
            shuffled_batches(self.rows, self.processor, self.recipe, epoch)
            for epoch in range(self.recipe.epochs)
        )
        rest = islice(batches, done * self.recipe.accumulation, None)
        warned = False
        while some := list(islice(rest, self.recipe.accumulation)):
            self._step(some)
            if not warned and (answer := constant_answer(self.watched)) is not None:
                warned = True
                log.warning(
                    "after %d of %d steps the last %d training rows all got class %d: a lower learning rate "
                    "may help",
                    len(self.history),
                    self.steps,
                    len(self.watched),
                    answer,
                )
            if self.state is not None and time.monotonic() - self.saved > SAVE_SECONDS:
                self.save(self.state)
            yield len(self.history)

    def _step(self, batches: Sequence[tuple[Batch, np.ndarray]]) -> None:
        self.optimizer.zero_grad()
        losses, penalties = zip(*(self._gradients(*each, len(batches)) for each in batches), strict=True)
        self._require_finite("loss", float(np.mean(losses)) + float(np.mean(penalties)))
        others = [each.grad for each in self._others() if each.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self._require_finite("gradient", float(norm + torch.nn.utils.get_total_norm(others)))
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        if self.course.after_step:
            with torch.no_grad():
                self.course.after_step()
        self.history.append(
            {"loss": float(np.mean(losses)), "penalty": float(np.mean(penalties)), "learning_rate": rate}
        )

    def _others(self) -> Iterator[nn.Parameter]:
        """What learns besides the network's parameters."""
        return (each for group in self.course.groups for each in group["params"])  # type: ignore[attr-defined]

    def _require_finite(self, what: str, value: float) -> None:
        """Ends the training before a step that would ruin the weights, and keeps what it has."""
        if math.isfinite(value):
            return
        if self.state is not None:
            self.save(self.state)
        raise FloatingPointError(
            f"the {what} became {value} at step {len(self.history) + 1} of {self.steps}: lower the learning "
            "rate, or quantize less"
        )

    def _gradients(self, batch: Batch, labels: np.ndarray, of: int) -> tuple[float, float]:
        """Adds the gradients of one batch of ``of``; returns its loss and penalty."""
        device = self.model.device
        forward: Callable[..., Any] = self.course.forward or self.model
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            logits = forward(**on_device(batch, device)).logits
        logits = logits.float()
        loss = self.loss(logits, batch, labels)
        penalty = self.course.penalty() if self.course.penalty else torch.zeros((), device=device)
        if torch.isfinite(loss + penalty):
            ((loss + penalty) / of).backward()  # type: ignore[no-untyped-call]
        if logits.ndim == 2 and labels.dtype.kind == "i":
            self.watched.extend(zip(logits.argmax(-1).tolist(), labels.tolist(), strict=True))
        return loss.item(), penalty.item()

    def save(self, file: Path) -> None:
        """Writes all that the rest of the run depends on."""
        state = {
            "model": self.model.state_dict(),
            "groups": [group["params"] for group in self.course.groups],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "watched": list(self.watched),
            "random": torch.random.get_rng_state(),
        }
        if self.model.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.model.device)
        with whole_file(file) as scratch, scratch.open("wb") as out:
            torch.save(state, out)
        self.saved = time.monotonic()

    def _restore(self, file: Path) -> None:
        state = torch.load(file, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            for group, values in zip(self.course.groups, state["groups"], strict=True):
                for parameter, value in zip(group["params"], values, strict=True):  # type: ignore[call-overload]
                    parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history[:] = state["history"]
        self.watched.extend(tuple(each) for each in state["watched"])
        torch.random.set_rng_state(state["random"].cpu())
        if "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.model.device)
        log.warning("training goes on after step %d of %d", len(self.history), self.steps)


def constant_answer(watched: Sequence[tuple[int, int]]) -> int | None:
    """The class that nearly all of the last ``WATCHED`` answers are, where their labels are not all it."""
    if len(watched) < WATCHED:
        return None
    answers, labels = (Counter(each) for each in zip(*watched, strict=True))
    (answer, times), (_, most) = answers.most_common(1)[0], labels.most_common(1)[0]
    return answer if times >= CONSTANT_SHARE * WATCHED > most else None


def shuffled_batches(
    rows: Encoded, processor: Any, recipe: Recipe, epoch: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields an epoch's batches in random order, each of rows of like length, with their labels (rows,)."""
    generator = np.random.default_rng([recipe.seed, epoch])
    order, size = generator.permutation(len(rows)), rows.most_rows(recipe.batch_size)
    for pool in np.split(order, range(POOL * size, len(order), POOL * size)):
        part = rows.take(pool)
        batches = by_length(part, processor, size)
        for chosen in generator.permutation(len(batches)):
            yield batches[chosen], part.labels[batches[chosen].indices]


def parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases and normalisation weights do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


def _bf16(recipe: Recipe, device: torch.device) -> bool:
    fast = bf16_is_fast(device)
    if recipe.bf16 is True and not fast:
        raise ValueError("recipe.bf16=true, but this hardware does not multiply in BF16: take auto or false")
    return bool(recipe.bf16) and fast


def bf16_is_fast(device: torch.device) -> bool:
    """True if the hardware itself multiplies in BF16; emulation is slower than FP32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def training_progress() -> Progress:
    """A bar with the loss and the learning rate."""
    numbers = TextColumn("loss {task.fields[loss]:.3f}, rate {task.fields[rate]:.1e}")
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), numbers, TimeRemainingColumn()
    )
