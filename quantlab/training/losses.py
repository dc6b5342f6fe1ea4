"""What training makes less: the task's loss, in nats or squared units of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import TOKENS

Loss = Callable[[Tensor, Batch, np.ndarray], Tensor]  # of FP32 logits, the batch, and its labels


def loss_for(head: str, columns: Sequence[int]) -> Loss:
    """The loss of a head; ``columns`` puts the model's classes into the task's order."""
    return next_token_loss if head == TOKENS else partial(_label_loss, list(columns))


def next_token_loss(logits: Tensor, batch: Batch, labels: np.ndarray) -> Tensor:
    """Mean cross entropy of each token after a row's first, given logits (rows, tokens, vocabulary)."""
    ids = batch.inputs["input_ids"].to(logits.device)
    counted = batch.inputs["attention_mask"].to(logits.device)[:, 1:].bool()
    return functional.cross_entropy(logits[:, :-1][counted], ids[:, 1:][counted])


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits (N, C) for class indices (N,); mean squared error of (N, 1) for scores."""
    if labels.is_floating_point():
        return functional.mse_loss(logits[:, 0], labels)
    return functional.cross_entropy(logits, labels)


def _label_loss(columns: list[int], logits: Tensor, batch: Batch, labels: np.ndarray) -> Tensor:
    return label_loss(logits[:, columns], torch.from_numpy(labels).to(logits.device))
