"""Labelled data of one's own: from a file, a folder or a data set of the hub, in one split or two."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlab.config.checks import can_name_hub_repository, nearest, texts, whole
from quantlab.tasks.columns import class_indices, classes_of
from quantlab.tasks.examples import Examples
from quantlab.tasks.hub import load_hub
from quantlab.tasks.sampling import evaluated
from quantlab.tasks.table_formats import READERS
from quantlab.tasks.tables import (
    DataColumn,
    DataTable,
    listed,
    read_file,
    read_split,
    stem_of,
    table_files,
)
from quantlab.tasks.task import Splits, Task

TRAIN = ("train", "training")
EVALUATION = ("validation", "valid", "val", "dev", "test")  # in the order in which they are taken
HUB_SETTINGS = ("config", "revision")


@dataclass(frozen=True, kw_only=True)
class LabelledData(Task):
    """Rows with one label each. A subclass says which columns hold what is classified.

    ``labels`` may be empty: the classes are then those of the data, and a checkpoint knows them by their
    names or, where they are whole numbers, by their indices.
    """

    data: str  # a file, a folder of split files, or a data set's name on the hub
    label: str  # the column of the labels
    config: str | None = None  # the hub data set's configuration
    revision: str | None = None  # a commit, tag or branch of the hub data set
    train_split: str | None = None  # None: the first of TRAIN that is there
    evaluation_split: str | None = None  # None: the first of EVALUATION that is there
    evaluation_share: float = 0.2  # of the rows, where there is only one file or split
    split_seed: int = 0  # of the rows that are drawn for it

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", as_texts(self.labels))
        super().__post_init__()
        texts("task.data, task.label", (self.data, self.label))
        whole("task.split_seed", self.split_seed, 0)
        if isinstance(self.evaluation_share, bool) or not 0 < self.evaluation_share < 1:
            raise ValueError(f"task.evaluation_share must be between 0 and 1, got {self.evaluation_share!r}")

    @property
    def regression(self) -> bool:
        """Never: labels name classes."""
        return False

    @abstractmethod
    def columns(self, table: DataTable) -> list[DataColumn]:
        """The columns of what is classified. Raises ValueError where they are not there."""

    @abstractmethod
    def examples(self, columns: Sequence[DataColumn], labels: np.ndarray) -> Examples:
        """The rows of these columns. Raises ValueError where a value is wrong."""

    @abstractmethod
    def groups(self, rows: Examples) -> np.ndarray:
        """A number for each row, (N,), the same for rows with equal content."""

    def load(self) -> Splits:
        """The rows that train and calibrate, and the rows that are evaluated: from two splits of the data, or
        drawn from one. Rows with equal content are never drawn for both.

        Raises ValueError or OSError that names what is wrong with the data, and where it stands.
        """
        tables = self._tables()
        columns = [[*self.columns(table), table.column(self.label)] for table in tables]
        given = dict.fromkeys(self.labels, tables[0].source)
        names = given or classes_of([label for *_, label in columns])
        examples = [self.examples(parts, class_indices(label, list(names))) for *parts, label in columns]
        tags = {"splits": " and ".join(table.source for table in tables), "classes": ", ".join(names)}
        if len(examples) == 2:
            return Splits(train=examples[0], evaluation=examples[1], classes=names, tags=tags)
        rows = examples[0]
        chosen = evaluated(rows.labels, self.groups(rows), self.evaluation_share, self.split_seed)
        drawn = (
            f"{chosen.sum():,} of {len(rows):,} rows of {tables[0].source}, drawn with seed {self.split_seed}"
        )
        return Splits(
            train=rows.take((~chosen).nonzero()[0]),
            evaluation=rows.take(chosen.nonzero()[0]),
            classes=names,
            tags=tags | {"splits": f"evaluation: {drawn}; train: the others"},
        )

    def _tables(self) -> list[DataTable]:
        """One table, or the train table and the evaluation table."""
        path = Path(self.data).expanduser()
        if path.is_dir():
            self._require_none(HUB_SETTINGS, "data sets of the hub")
            return self._folder_tables(path)
        if path.is_file():
            self._require_none(("train_split", "evaluation_split"), "data in several splits")
            self._require_none(HUB_SETTINGS, "data sets of the hub")
            return [read_file(path)]
        if path.suffix[1:].lower() in READERS or not can_name_hub_repository(self.data):
            raise FileNotFoundError(f"task.data={self.data} is no file and no folder here{_nearby(path)}")
        otherwise = f"give the path of a file or folder as task.data: {path} is none{_nearby(path)}"
        hub = load_hub(self.data, self.config, self.revision, otherwise)
        return [hub.table(name) for name in self.chosen(list(map(str, hub.splits)), hub.source)]

    def _folder_tables(self, folder: Path) -> list[DataTable]:
        """The tables of a folder of split files."""
        names = list(dict.fromkeys(map(stem_of, table_files(folder))))
        if not names:
            kinds = ", ".join(f".{kind}" for kind in READERS)
            raise FileNotFoundError(f"{folder} has no {kinds} file; it holds {listed(folder)}")
        return [read_split(folder, (name,)) for name in self.chosen(names, str(folder))]

    def chosen(self, names: Sequence[str], source: str) -> list[str]:
        """The one split there is, or the names of the train split and of the evaluation split."""
        if len(names) == 1 and self.train_split is None and self.evaluation_split is None:
            return list(names)
        train = _split("train_split", self.train_split, TRAIN, names, source)
        evaluation = _split("evaluation_split", self.evaluation_split, EVALUATION, names, source)
        if train == evaluation:
            raise ValueError(f"task.train_split and task.evaluation_split are both {train!r}")
        return [train, evaluation]

    def _require_none(self, names: Sequence[str], kind: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"task.{name}={getattr(self, name)} is for {kind}, not for {self.data}")


def as_texts(values: object) -> object:
    """A single text as a tuple of one, and whole numbers among several as texts: labels may be 1, 2, 3."""
    if not isinstance(values, list | tuple):
        return (values,)
    return tuple(str(value) if type(value) is int else value for value in values)


def _split(field: str, wanted: str | None, usual: Sequence[str], names: Sequence[str], source: str) -> str:
    for name in (wanted,) if wanted is not None else usual:
        if name in names:
            return name
    missing = wanted if wanted is not None else " or ".join(usual)
    raise ValueError(
        f"{source} has no split {missing}{nearest(wanted or '', names)}: give task.{field}, one of "
        f"{', '.join(names)}"
    )


def _nearby(path: Path) -> str:
    folder = path.parent
    return nearest(path.name, [each.name for each in folder.iterdir()]) if folder.is_dir() else ""
