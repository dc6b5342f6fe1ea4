"""From units to batches of a network's inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 256  # examples a call of the tokenizer, whose result takes ten times the memory of the token ids
PREDICTED_AT_ONCE = 1024  # tokens in a batch that a whole vocabulary answers: 49,152 words take 200 MB


class Encoded(ABC):
    """Units as a network's inputs, in a fixed order."""

    labels: np.ndarray  # (N,), as the examples'

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def lengths(self) -> np.ndarray:
        """A size of each unit, (N,), by which like ones share a batch: its tokens."""

    @abstractmethod
    def batch(self, indices: np.ndarray, processor: Any, full_length: bool = False) -> Batch:
        """The units at ``indices`` as one batch, padded to the longest of them, or all to the full length."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> Self:
        """The units at ``indices``, in that order."""

    @abstractmethod
    def shortened(self, length: int) -> Self:
        """The units with at most ``length`` tokens each, which is then the full length."""

    @abstractmethod
    def most_rows(self, size: int) -> int:
        """How many units a batch takes where ``size`` are asked for: fewer where answers are large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenized(Encoded):
    """Examples as token ids, one row each, without padding."""

    rows: tuple[dict[str, list[int]], ...]  # input_ids, and the tokenizer's other inputs for each token
    labels: np.ndarray  # (N,), as the examples'
    max_length: int  # in tokens; longer rows have been cut
    # (N, 1 or 2): the number of tokens at the end of each row that are predicted and, for windows of a text,
    # of the words that begin in them. None where a text is classified.
    predicted: np.ndarray | None = None

    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.array([len(row["input_ids"]) for row in self.rows])

    def batch(self, indices: np.ndarray, processor: Any, full_length: bool = False) -> Batch:
        rows = [self.rows[index] for index in indices]
        length = self.max_length if full_length else None
        if self.predicted is None:
            return Batch(inputs=_pad(rows, processor, length), indices=indices)
        return Batch(inputs=_pad_right(rows, length), indices=indices, predicted=self.predicted[indices])

    def unigram_perplexity(self) -> float:
        """exp of the entropy of the tokens' own shares: what a model without context reaches at best."""
        ids = np.concatenate([row["input_ids"] for row in self.rows])
        shares = np.unique(ids, return_counts=True)[1] / len(ids)
        return float(np.exp(-np.sum(shares * np.log(shares))))

    def take(self, indices: np.ndarray) -> Self:
        return replace(
            self,
            rows=tuple(self.rows[index] for index in indices),
            labels=self.labels[indices],
            predicted=None if self.predicted is None else self.predicted[indices],
        )

    def shortened(self, length: int) -> Self:
        rows = tuple({name: values[:length] for name, values in row.items()} for row in self.rows)
        return replace(self, rows=rows, max_length=length)

    def most_rows(self, size: int) -> int:
        if self.predicted is None:
            return size
        return max(1, min(size, PREDICTED_AT_ONCE // int(self.lengths().max())))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Padded rows, each tensor of shape (rows, tokens), and where the rows stand among the examples."""

    inputs: Mapping[str, Tensor]
    indices: np.ndarray
    predicted: np.ndarray | None = None  # (rows, 1 or 2), as in Tokenized

    def __len__(self) -> int:
        return len(self.indices)


def tokenize(
    texts: Sequence[Sequence[str]], labels: np.ndarray, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Tokenized:
    """Turns each example's texts into one row of at most ``max_length`` tokens.

    Raises ValueError that names the example if its texts have no token.
    """
    rows: list[dict[str, list[int]]] = []
    for start in range(0, len(texts), AT_ONCE):
        columns = [list(column) for column in zip(*texts[start : start + AT_ONCE], strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        rows += [
            dict(zip(encoded.keys(), values, strict=True)) for values in zip(*encoded.values(), strict=True)
        ]
    empty = next((index for index, row in enumerate(rows) if not row["input_ids"]), None)
    if empty is not None:
        raise ValueError(
            f"the tokenizer makes no token of {' / '.join(map(repr, texts[empty]))} (example "
            f"{empty}): remove the row, or give tokenizer.json the post-processor that adds [CLS] and [SEP]"
        )
    return Tokenized(rows=tuple(rows), labels=labels, max_length=max_length)


def in_file_order(data: Encoded, processor: Any, size: int, full_length: bool) -> list[Batch]:
    """Batches of ``size`` consecutive rows, padded to the longest of each, or all to the full length."""
    return _batches(data, processor, np.arange(len(data)), size, full_length)


def by_length(data: Encoded, processor: Any, size: int, rows: np.ndarray | None = None) -> list[Batch]:
    """Batches of rows of like length, each padded to its own longest row, which leaves little padding.

    They are of all rows, or of those at ``rows`` (n,). The longest come first: if they do not fit in memory,
    the trial fails at once.
    """
    rows = np.arange(len(data)) if rows is None else rows
    return _batches(data, processor, rows[np.argsort(-data.lengths()[rows], kind="stable")], size)


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The batch's inputs on a device."""
    return {name: tensor.to(device) for name, tensor in batch.inputs.items()}


def _batches(
    data: Encoded, processor: Any, order: np.ndarray, size: int, full_length: bool = False
) -> list[Batch]:
    rows = data.most_rows(size)
    return [
        data.batch(indices, processor, full_length)
        for indices in np.split(order, range(rows, len(order), rows))
    ]


def _pad(
    rows: Sequence[dict[str, list[int]]], tokenizer: PreTrainedTokenizerBase, length: int | None
) -> dict[str, Tensor]:
    """Pads on the right whatever the tokenizer's own side is: networks that get no positions count them from
    the left, padding included."""
    padded = tokenizer.pad(
        list(rows),
        padding="longest" if length is None else "max_length",
        max_length=length,
        padding_side="right",
        return_tensors="pt",
    )
    return dict(padded)


def _pad_right(rows: Sequence[dict[str, list[int]]], length: int | None) -> dict[str, Tensor]:
    """Zeros after each row's tokens, in the mask too. No token looks ahead, so any id will do for padding."""
    width = max(len(row["input_ids"]) for row in rows) if length is None else length
    return {
        name: torch.tensor([row[name] + [0] * (width - len(row[name])) for row in rows]) for name in rows[0]
    }


def total_rows(batches: Iterable[Batch]) -> int:
    """Number of examples in the batches."""
    return sum(map(len, batches))
