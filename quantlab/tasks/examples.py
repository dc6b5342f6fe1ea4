"""What a task's data are made of: units in a fixed order, each with a label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from quantlab.storage.files import digest
from quantlab.tasks.batching import Encoded, Tokenized, tokenize


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples(ABC):
    """Units in a fixed order. A subclass says what they are, and how a processor encodes them."""

    labels: np.ndarray  # (N,): int64 indices in the task's order of labels, or float32 scores
    # (N,) integers: units with the same number belong together, and intervals respect that. None: each
    # stands alone.
    clusters: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of units, labels and their order."""

    @abstractmethod
    def _at(self, rows: np.ndarray) -> dict[str, Any]:
        """The subclass's own fields for the rows at these indices, int64 (n,)."""

    @abstractmethod
    def encode(self, processor: Any, max_length: int) -> Encoded:
        """The units as a network's inputs, of at most ``max_length`` tokens each. Raises ValueError that
        names a unit which has none."""

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The examples at ``indices``, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        clusters = None if self.clusters is None else self.clusters[rows]
        return type(self)(labels=self.labels[rows], clusters=clusters, **self._at(rows))

    def head(self, count: int) -> Self:
        """The first ``count`` examples, or all where there are fewer."""
        return self.take(np.arange(min(count, len(self))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts(Examples):
    """One or two texts an example."""

    texts: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts and {len(self.labels)} labels")

    @cached_property
    def fingerprint(self) -> str:
        texts = (text for row in self.texts for text in (str(len(row)), *row))
        return digest([*texts, str(self.labels.dtype), self.labels.tobytes()])

    def _at(self, rows: np.ndarray) -> dict[str, Any]:
        return {"texts": tuple(self.texts[row] for row in rows)}

    def encode(self, processor: Any, max_length: int) -> Tokenized:
        return tokenize(self.texts, self.labels, processor, max_length)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRows(Examples):
    """Rows of token ids, of which a network that predicts the next token is asked for the last ones."""

    rows: tuple[np.ndarray, ...]  # int64 token ids, each (tokens,)
    predicted: np.ndarray  # (N, 1 or 2), as in Tokenized

    @cached_property
    def fingerprint(self) -> str:
        lengths = np.array([len(row) for row in self.rows])
        clusters = () if self.clusters is None else (self.clusters,)
        arrays = (lengths, *self.rows, self.predicted, *clusters)
        return digest(["token rows", *(array.tobytes() for array in arrays)])

    def _at(self, rows: np.ndarray) -> dict[str, Any]:
        return {"rows": tuple(self.rows[row] for row in rows), "predicted": self.predicted[rows]}

    def encode(self, processor: Any, max_length: int) -> Tokenized:
        """The rows themselves: a tokenizer has made them."""
        rows = tuple({"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in self.rows)
        return Tokenized(rows=rows, labels=self.labels, max_length=max_length, predicted=self.predicted)
