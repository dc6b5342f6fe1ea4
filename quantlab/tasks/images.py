"""Classification of images: folders of classes, tables with their bytes, or a data set of the hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from quantlab.tasks.examples import Examples
from quantlab.tasks.heads import IMAGES
from quantlab.tasks.image_files import Images, Picture
from quantlab.tasks.labelled import EVALUATION, TRAIN, LabelledData
from quantlab.tasks.tables import DataColumn, DataTable, table_files

COLUMNS = ("image", "img")  # what data sets of the hub call their pictures


@dataclass(frozen=True, kw_only=True)
class ImageClassification(LabelledData):
    """Pictures with one label each.

    A folder holds tables, or a folder of pictures for each class, or such folders in one for each split.
    """

    image: str | None = None  # the column of the pictures; None: the first of COLUMNS that is there

    head: ClassVar[str] = IMAGES

    def columns(self, table: DataTable) -> list[DataColumn]:
        return [table.column(self.image) if self.image else table.column(COLUMNS[0], COLUMNS[1:])]

    def examples(self, columns: Sequence[DataColumn], labels: np.ndarray) -> Images:
        (column,) = columns
        pictures = tuple(_picture(column, row, value) for row, value in enumerate(column.values))
        return Images(labels=labels, pictures=pictures)

    def groups(self, rows: Examples) -> np.ndarray:
        return pd.factorize(pd.Series(rows.contents if isinstance(rows, Images) else ()))[0]

    def _folder_tables(self, folder: Path) -> list[DataTable]:
        if table_files(folder):
            return super()._folder_tables(folder)
        names = [path.name for path in _folders(folder)]
        if not names:
            raise FileNotFoundError(f"{folder} holds no table and no folder of pictures for each class")
        if (
            self.train_split is None
            and self.evaluation_split is None
            and not {*names} & {*TRAIN, *EVALUATION}
        ):
            return [self._class_table(folder)]
        return [self._class_table(folder / name) for name in self.chosen(names, str(folder))]

    def _class_table(self, folder: Path) -> DataTable:
        """A row for each picture in a folder of classes. Raises ValueError where a class has none."""
        rows: list[tuple[Path, str]] = []
        for each in _folders(folder):
            files = sorted(path for path in each.iterdir() if path.is_file() and path.name[0] != ".")
            if not files:
                raise ValueError(f"{each} holds no picture: remove the folder, or fill the class")
            rows += [(path, each.name) for path in files]
        frame = pd.DataFrame(rows, columns=[self.image or COLUMNS[0], self.label]).rename_axis("row")
        return DataTable(source=str(folder), frame=frame)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _picture(column: DataColumn, row: int, value: Any) -> Picture:
    """A picture of a table's cell: a path, bytes, or the hub's {bytes, path}."""
    content = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if isinstance(content, str):
        content = Path(content)
    if isinstance(content, Path):
        if not content.is_file():
            raise ValueError(f"{column.at(row)}: {content} is no file here")
        return Picture(place=str(content), content=content)
    if not isinstance(content, bytes) or not content:
        raise ValueError(f"{column.at(row)} holds no picture: expected bytes, a path, or both as a record")
    return Picture(place=column.at(row), content=content)
