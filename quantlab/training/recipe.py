"""The training loop: AdamW, linear warm-up and decay, batches of like length, BF16 where that is fast."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from quantlab.network.models import Recipe
from quantlab.tasks.batching import Batch, Encoded, by_length, on_device

POOL = 50  # batches whose rows are sorted by length together: many for little padding, few to stay random
MAX_GRAD_NORM = 1.0


def train(model: PreTrainedModel, processor: Any, rows: Encoded, recipe: Recipe) -> None:
    """Trains the model in place. Raises FloatingPointError if the loss becomes NaN or infinite."""
    steps = recipe.epochs * math.ceil(len(rows) / recipe.batch_size)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True
    )
    warmup = round(recipe.warmup_fraction * steps)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)  # type: ignore[no-untyped-call]
    model.train()
    with training_progress() as bar:
        shown = bar.add_task("fine-tuning", total=steps, loss=float("nan"), rate=recipe.learning_rate)
        for epoch in range(recipe.epochs):
            for batch, labels in shuffled_batches(rows, processor, recipe, epoch):
                loss = step(model, batch, labels, recipe.bf16)
                optimizer.step()
                schedule.step()
                bar.update(shown, advance=1, loss=loss, rate=schedule.get_last_lr()[0])
    model.eval()  # type: ignore[no-untyped-call]


def step(model: PreTrainedModel, batch: Batch, labels: np.ndarray, bf16: bool) -> float:
    """Computes the batch's gradients into the model, clipped to ``MAX_GRAD_NORM``, and returns the loss."""
    wanted = torch.from_numpy(labels).to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16 and bf16_is_fast(model.device)):
        logits = model(**on_device(batch, model.device)).logits
    loss = loss_of(logits.float(), wanted)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}: lower the learning rate")
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    return loss.item()


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits (N, C) for class indices (N,); mean squared error of (N, 1) for scores."""
    if labels.is_floating_point():
        return functional.mse_loss(logits[:, 0], labels)
    return functional.cross_entropy(logits, labels)


def shuffled_batches(
    rows: Encoded, processor: Any, recipe: Recipe, epoch: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields an epoch's batches in random order, each of rows of like length, with their labels (rows,)."""
    generator = np.random.default_rng([recipe.seed, epoch])
    order = generator.permutation(len(rows))
    for pool in np.split(order, range(POOL * recipe.batch_size, len(order), POOL * recipe.batch_size)):
        part = rows.take(pool)
        batches = by_length(part, processor, recipe.batch_size)
        for chosen in generator.permutation(len(batches)):
            yield batches[chosen], part.labels[batches[chosen].indices]


def parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases and normalisation weights do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


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
