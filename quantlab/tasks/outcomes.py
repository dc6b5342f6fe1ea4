"""Outcomes: what is kept of a network's answers, a row of columns for each unit."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quantlab.tasks.batching import Batch


def outcomes(logits: Tensor, batch: Batch, columns: Sequence[int]) -> np.ndarray:
    """The values (rows, C) that a task's scores read, of a network's logits for one batch.

    Where units are classified, logits (rows, classes) are put in the order of ``columns``, float32. Where
    tokens are predicted, logits (rows, tokens, vocabulary) are summed up at once, since all of them take too
    much memory: float64 columns, the negative log-likelihood in nats and, for windows of a text, the numbers
    of predicted tokens and words, or else 1 where each predicted token is the likeliest.
    """
    if batch.predicted is None:
        classes: np.ndarray = logits.float().cpu().numpy()
        return classes[:, list(columns)]
    ids = batch.inputs["input_ids"].to(logits.device)
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    rows = [
        _predicted(row[:length], tokens[:length], int(count))
        for row, tokens, length, (count, *_) in zip(logits, ids, lengths, batch.predicted, strict=True)
    ]
    nll, right = np.array(rows).T
    windows = batch.predicted.shape[1] == 2
    return np.stack([nll, *(batch.predicted.T if windows else [right])], axis=1)


def in_order(values: Sequence[np.ndarray], batches: Sequence[Batch]) -> np.ndarray:
    """The batches' values, each (rows, C), as one array (N, C) in the order of the examples."""
    stacked = np.concatenate(list(values))
    ordered = np.empty_like(stacked)
    ordered[np.concatenate([batch.indices for batch in batches])] = stacked
    return ordered


def _predicted(logits: Tensor, ids: Tensor, count: int) -> tuple[float, float]:
    """The negative log-likelihood of the last ``count`` of a row's tokens, and whether each is the likeliest.

    ``logits`` are (tokens, vocabulary), padding gone; those of one token predict the next.
    """
    before, targets = logits[-count - 1 : -1], ids[-count:]
    losses = torch.nn.functional.cross_entropy(before.float(), targets, reduction="none")
    return float(losses.double().sum()), float((before.argmax(-1) == targets).all())
