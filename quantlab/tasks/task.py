"""What a task is: labelled units in two splits, the names of the labels, and the metrics that count."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from quantlab.config.checks import folder_name, freeze, one_of, texts, whole
from quantlab.tasks.examples import Examples
from quantlab.tasks.heads import CLASSES
from quantlab.tasks.scores import OF_KIND, Kind


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

    length_key: ClassVar[str] = "max_length"  # the setting that max_length comes from
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

    def units(self, examples: Examples, processor: Any) -> Examples:
        """The units that are evaluated, of loaded examples: themselves, but for tasks whose units the
        checkpoint's tokenizer makes. Raises ValueError where it can make none."""
        return examples

    def unit_tags(self, examples: Examples, units: Examples) -> dict[str, str]:
        """What the trial's tags say of how ``units`` came from the loaded ``examples``."""
        return {}

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
