"""From texts to batches of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantlab.tasks.task import Examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 256  # examples a call of the tokenizer, whose result takes ten times the memory of the token ids


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenized:
    """Examples as token ids, one row each, without padding."""

    rows: tuple[dict[str, list[int]], ...]  # input_ids, and the tokenizer's other inputs for each token
    labels: np.ndarray  # (N,), as the examples'
    max_length: int  # in tokens; longer rows have been cut

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.array([len(row["input_ids"]) for row in self.rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Padded rows, each tensor of shape (rows, tokens), and where the rows stand among the examples."""

    inputs: dict[str, Tensor]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokenized:
    """Turns each example's texts into one row of at most ``max_length`` tokens.

    Raises ValueError that names the example if its texts have no token.
    """
    rows: list[dict[str, list[int]]] = []
    for start in range(0, len(examples.texts), AT_ONCE):
        columns = [list(column) for column in zip(*examples.texts[start : start + AT_ONCE], strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        rows += [
            dict(zip(encoded.keys(), values, strict=True)) for values in zip(*encoded.values(), strict=True)
        ]
    empty = next((index for index, row in enumerate(rows) if not row["input_ids"]), None)
    if empty is not None:
        raise ValueError(
            f"the tokenizer makes no token of {' / '.join(map(repr, examples.texts[empty]))} (example "
            f"{empty}): remove the row, or give tokenizer.json the post-processor that adds [CLS] and [SEP]"
        )
    return Tokenized(rows=tuple(rows), labels=examples.labels, max_length=max_length)


def in_file_order(
    data: Tokenized, tokenizer: PreTrainedTokenizerBase, size: int, full_length: bool
) -> list[Batch]:
    """Batches of ``size`` consecutive rows, padded to the longest of each, or all to ``max_length``."""
    return _batches(data, tokenizer, np.arange(len(data)), size, data.max_length if full_length else None)


def by_length(data: Tokenized, tokenizer: PreTrainedTokenizerBase, size: int) -> list[Batch]:
    """Batches of rows of like length, each padded to its own longest row, which leaves little padding.

    The longest come first: if they do not fit in memory, the trial fails at once.
    """
    return _batches(data, tokenizer, np.argsort(-data.lengths(), kind="stable"), size, None)


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The batch's inputs on a device."""
    return {name: tensor.to(device) for name, tensor in batch.inputs.items()}


def _batches(
    data: Tokenized, tokenizer: PreTrainedTokenizerBase, order: np.ndarray, size: int, length: int | None
) -> list[Batch]:
    return [
        Batch(inputs=_pad([data.rows[i] for i in indices], tokenizer, length), indices=indices)
        for indices in np.split(order, range(size, len(order), size))
    ]


def _pad(
    rows: Sequence[dict[str, list[int]]], tokenizer: PreTrainedTokenizerBase, length: int | None
) -> dict[str, Tensor]:
    padded = tokenizer.pad(
        list(rows),
        padding="longest" if length is None else "max_length",
        max_length=length,
        return_tensors="pt",
    )
    return dict(padded)


def total_rows(batches: Iterable[Batch]) -> int:
    """Number of examples in the batches."""
    return sum(map(len, batches))
