"""Reads tables of texts and labels from parquet, CSV, TSV, JSON lines and JSON files.

A table remembers where its rows stand in the file, so that a message can name the place: ``line`` for
CSV, TSV and JSON lines (from 1, the header included), ``row`` for parquet and JSON arrays (from 0).
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.config.checks import nearest, refuse_pointer
from quantlab.tasks.table_formats import READERS, recorded_classes

UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")  # the hub's file names


@dataclass(frozen=True, kw_only=True, eq=False)
class DataColumn:
    """One column of a table, with what a message needs to point at a value."""

    name: str
    values: Sequence[Any]
    source: str
    places: pd.Index  # of the values in the source; its name is line or row
    classes: tuple[str, ...] = ()  # names of the integers 0, 1, ..., where the file records them

    def at(self, row: int) -> str:
        """``reviews.csv: column 'label', line 12``: where the value of a row stands."""
        return f"{self.source}: column {self.name!r}, {self.places.name or 'row'} {self.places[row]}"


@dataclass(frozen=True, kw_only=True, eq=False)
class DataTable:
    """The rows of one split."""

    source: str  # the file, or the hub's name of the split, for messages
    frame: pd.DataFrame  # its index says where the rows stand in the source
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by column; see DataColumn

    def column(self, name: str, aliases: Sequence[str] = ()) -> DataColumn:
        """A column by its name, or else by the first of its other names that is there.

        Raises ValueError that lists the columns where there is none of these names, or several of one.
        """
        names = list(map(str, self.frame.columns))
        if not names:
            raise ValueError(f"{self.source} is empty")
        known = next((each for each in (name, *aliases) if each in names), None)
        if known is None:
            raise ValueError(f"{self.source}: no column {name!r}; found {names}{nearest(name, names)}")
        if names.count(known) > 1:
            raise ValueError(f"{self.source}: {names.count(known)} columns are called {known!r}")
        if self.frame.empty:
            raise ValueError(f"{self.source} holds no rows")
        return DataColumn(
            name=known,
            values=self.frame.iloc[:, names.index(known)].tolist(),
            source=self.source,
            places=self.frame.index,
            classes=self.classes.get(known, ()),
        )


def read_split(folder: Path, stems: Sequence[str], header: Sequence[str] = ()) -> DataTable:
    """The split that is called by one of ``stems``, from one file or from all of its shards.

    ``header`` names the columns of a tab-separated file whose first line has as many fields and none of these
    names. Raises FileNotFoundError or ValueError that names the file and the line.
    """
    files = find_files(folder, stems)
    tables = [read_file(path, header) for path in files]
    if len(files) == 1:
        return tables[0]
    return DataTable(
        source=str(files[0].with_name(f"{stem_of(files[0])}-*{files[0].suffix}")),
        frame=pd.concat([table.frame for table in tables], ignore_index=True).rename_axis("row"),
        classes=tables[0].classes,
    )


def read_file(path: Path, header: Sequence[str] = ()) -> DataTable:
    """The table in one file; for ``header``, see :func:`read_split`.

    Raises ValueError that names the file and the line, also on a kind of file that is not read.
    """
    suffix = path.suffix[1:].lower()
    if suffix not in READERS:
        raise ValueError(
            f"{path} is none of the files that are read: {', '.join(f'.{kind}' for kind in READERS)}"
        )
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(len(UTF16[0]))
    if suffix != "parquet" and start.startswith(UTF16):
        raise ValueError(
            f"{path} is UTF-16, expected UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} converts it"
        )
    try:
        frame = READERS[suffix](path, header)
        classes = recorded_classes(path) if suffix == "parquet" else {}
    except (ValueError, OSError, csv.Error) as error:  # what pandas and pyarrow raise on a broken file
        raise ValueError(f"{path} cannot be read as {suffix}: {error}") from error
    return DataTable(source=str(path), frame=frame, classes=classes)


def find_files(folder: Path, stems: Sequence[str]) -> list[Path]:
    """The one file of a split, or all of its shards in order.

    Raises FileNotFoundError or ValueError that says what is expected and what is there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"task.data_dir={folder} is no folder; expected one with {expected(stems)}")
    files = [path for path in table_files(folder) if stem_of(path) in stems]
    if len({(stem_of(path), path.suffix, _total(path)) for path in files}) > 1:
        raise ValueError(
            f"{folder} has {' and '.join(path.name for path in files)} for the same split; keep one"
        )
    if not files:
        raise FileNotFoundError(f"{folder} has no {expected(stems)}; it holds {listed(folder)}")
    if (total := _total(files[0])) is not None and len(files) < total:
        whole = [f"{stem_of(files[0])}-{number:05}-of-{total:05}{files[0].suffix}" for number in range(total)]
        missing = sorted(set(whole) - {path.name for path in files})
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing[:5])}: it has {len(files)} of {total} shards"
        )
    return files


def table_files(folder: Path) -> list[Path]:
    """The files of a folder that can be read as tables, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix[1:].lower() in READERS)


def listed(folder: Path) -> str:
    """The first names in a folder, for messages."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"


def expected(stems: Sequence[str]) -> str:
    """``train.{parquet,jsonl,...}``: the file names of a split, for messages."""
    return f"{stems[0] if len(stems) == 1 else '{' + ','.join(stems) + '}'}.{{{','.join(READERS)}}}"


def stem_of(path: Path) -> str:
    """The split's name in a file's name: ``train`` of ``train.parquet`` and of
    ``train-00000-of-00002.parquet``."""
    match = SHARD.fullmatch(path.stem)
    return match["stem"] if match else path.stem


def _total(path: Path) -> int | None:
    """How many shards a shard's name counts; None where the file is no shard."""
    match = SHARD.fullmatch(path.stem)
    return int(match["total"]) if match else None
