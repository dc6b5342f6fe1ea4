"""What a task is: labelled texts in two splits, the names of the labels, and the metrics that count."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from quantlab.config.checks import folder_name, freeze, one_of, texts, whole
from quantlab.storage.files import digest
from quantlab.tasks.heads import CLASSES
from quantlab.tasks.scores import OF_KIND, Kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Texts with their labels, in a fixed order."""

    texts: tuple[tuple[str, ...], ...]  # one or two texts an example
    labels: np.ndarray  # (N,): int64 indices in the task's order of labels, or float32 scores

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of texts, labels and their order."""
        texts = (text for row in self.texts for text in (str(len(row)), *row))
        return digest([*texts, str(self.labels.dtype), self.labels.tobytes()])

    def take(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """The examples at ``indices``, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        return Examples(texts=tuple(self.texts[row] for row in rows), labels=self.labels[rows])

    def head(self, count: int) -> "Examples":
        """The first ``count`` examples, or all where there are fewer."""
        return Examples(texts=self.texts[:count], labels=self.labels[:count])


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """A task's data: ``train`` calibrates and fine-tunes, ``evaluation`` measures."""

    train: Examples
    evaluation: Examples
    # The classes in the order of their indices, each with the place of its first row; empty for tasks that
    # always name their labels.
    classes: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)  # for the trial's tags: what was read, how split


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task's settings. A subclass adds where its examples come from, and ``load``."""

    name: str
    labels: tuple[str, ...]  # the classes in the order of their indices; none for a regression
    metrics: tuple[str, ...]  # the first is the primary one, which differences are taken of
    max_length: int = 128  # in tokens; longer texts are cut

    head: ClassVar[str] = CLASSES  # that a checkpoint needs, one of quantlab.tasks.heads

    def __post_init__(self) -> None:
        freeze(self)
        folder_name("task.name", self.name)
        texts("labels", self.labels)
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ValueError(
                f"labels must be at least two different names, or none for a regression; got {self.labels}"
            )
        if not self.metrics:
            raise ValueError("metrics must name at least one metric")
        for metric in self.metrics:
            one_of("metrics", metric, OF_KIND[self.kind])
        whole("max_length", self.max_length, 4)

    @abstractmethod
    def load(self) -> Splits:
        """Reads both splits. Raises ValueError or OSError that names the file and what is wrong with it."""

    @property
    def kind(self) -> Kind:
        """What is asked of each unit, which says what the columns of the answers hold."""
        return Kind.REGRESSION if self.regression else Kind.CLASSES

    @property
    def regression(self) -> bool:
        """Whether the labels are scores."""
        return not self.labels

    def classes(self, splits: Splits) -> tuple[str, ...]:
        """The names of the classes in the order of their indices; none for a regression."""
        return self.labels or tuple(splits.classes)
