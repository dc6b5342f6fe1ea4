"""Texts whose next tokens a decoder predicts: from a text file, a table, a folder of tables or the hub."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantlab.config.checks import can_name_hub_repository, part, texts
from quantlab.tasks.columns import pair_texts
from quantlab.tasks.examples import Examples, Texts
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.hub import load_hub
from quantlab.tasks.table_formats import READERS
from quantlab.tasks.tables import DataTable, read_file, read_split
from quantlab.tasks.task import Splits, Task

COLUMN = "text"  # what data sets of the hub call their texts


@dataclass(frozen=True, kw_only=True)
class NextTokens(Task):
    """A task on plain texts. A subclass says what a text file holds, and which texts calibrate.

    ``data`` and ``calibration`` are each a text file, a table, a folder of tables called train, test, ..., or
    a data set's name on the hub.
    """

    data: str
    text: str | None = None  # the column of a table; None: COLUMN
    calibration: str | None = None  # None: the first share of the data
    calibration_share: float = 0.2  # of the data
    split: str = "test"  # of a folder or a hub data set, which is evaluated
    calibration_split: str = "train"  # of a folder or a hub data set that calibrates
    config: str | None = None  # the configuration of the hub data set
    revision: str | None = None  # a commit, tag or branch of the hub data set

    head: ClassVar[str] = TOKENS

    def __post_init__(self) -> None:
        super().__post_init__()
        texts(
            "task.data, task.split, task.calibration_split", (self.data, self.split, self.calibration_split)
        )
        part("task.calibration_share", self.calibration_share)
        if self.calibration == self.data and (
            self.split == self.calibration_split or Path(self.data).expanduser().is_file()
        ):
            raise ValueError(
                f"task.calibration={self.calibration} is what is evaluated: without it, the first "
                f"{self.calibration_share:.0%} of task.data calibrate"
            )

    @property
    def regression(self) -> bool:
        """Never: there are no labels."""
        return False

    @abstractmethod
    def texts_of(self, content: str) -> list[str]:
        """The texts that a text file with this content holds."""

    @abstractmethod
    def cut(self, whole: list[str]) -> tuple[list[str], list[str]]:
        """The first share of the texts, which calibrates, and the rest."""

    def load(self) -> Splits:
        """The texts that calibrate and the texts that are evaluated. Raises ValueError or OSError that names
        the file and what is wrong with it."""
        evaluated = self._read(self.data, self.split)
        if self.calibration is not None:
            calibrating = self._read(self.calibration, self.calibration_split)
            how = self.calibration
        else:
            calibrating, evaluated = self.cut(evaluated)
            how = f"the first {self.calibration_share:.0%} of {self.data}"
        tags = {"splits": f"calibration: {how}; evaluation: {self.data}"}
        return Splits(train=_examples(calibrating), evaluation=_examples(evaluated), tags=tags)

    def contents(self, examples: Examples) -> list[str]:
        """The texts of examples. Raises ValueError on examples of another kind."""
        if not isinstance(examples, Texts):
            raise ValueError(f"next tokens are of texts, got {type(examples).__name__}")
        return [text for (text,) in examples.texts]

    def _read(self, source: str, split: str) -> list[str]:
        path = Path(source).expanduser()
        if path.is_file() and path.suffix[1:].lower() not in READERS:
            if self.text is not None:
                raise ValueError(f"task.text={self.text} is for tables: {path} is read as plain text")
            return self.texts_of(_content(path))
        return self._column(self._table(source, path, split))

    def _table(self, source: str, path: Path, split: str) -> DataTable:
        if path.is_file():
            return read_file(path)
        if path.is_dir():
            return read_split(path, (split,))
        if path.suffix or not can_name_hub_repository(source):
            raise FileNotFoundError(
                f"{source} is no file and no folder here: give a text, a table, a folder of tables or a hub "
                "data set's name"
            )
        config, revision = (self.config, self.revision) if source == self.data else (None, None)
        return load_hub(source, config, revision, f"give the path of a file: {path} is none").table(split)

    def _column(self, table: DataTable) -> list[str]:
        return [text for (text,) in pair_texts([table.column(self.text or COLUMN)])]


def _examples(contents: Sequence[str]) -> Texts:
    return Texts(texts=tuple((text,) for text in contents), labels=np.zeros(len(contents), np.int64))


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start:,}") from error
