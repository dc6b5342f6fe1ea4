"""Reads tables of texts and labels from parquet, CSV, TSV, JSON lines and JSON files.

A table remembers where its rows stand in the file, so that a message can name the place: ``line`` for
CSV, TSV and JSON lines (from 1, the header included), ``row`` for parquet and JSON arrays (from 0).
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.config.checks import nearest, refuse_pointer

UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")  # the hub's file names
LONGEST_FIELD = 2**31 - 1  # characters of a CSV field; Python's own limit is 131,072


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
        classes = _recorded_classes(path) if suffix == "parquet" else {}
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


def _read_parquet(path: Path, _: Sequence[str]) -> pd.DataFrame:
    return pd.read_parquet(path).reset_index(drop=True).rename_axis("row")


def _recorded_classes(path: Path) -> dict[str, tuple[str, ...]]:
    """The names of class indices by column, which the library ``datasets`` writes into a parquet's schema."""
    from pyarrow import parquet

    recorded = (parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(recorded).get("info", {}).get("features", {})
    return {
        name: tuple(kind["names"]) for name, kind in features.items() if kind.get("_type") == "ClassLabel"
    }


def _read_jsonl(path: Path, _: Sequence[str]) -> pd.DataFrame:
    # Not by pandas, which guesses at types: a text such as "007" must stay one.
    rows = dict(_objects(_lines(path)))
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="line"))


def _objects(lines: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error.msg} at character {error.pos}") from error
        if isinstance(content, list):
            raise ValueError(
                f"line {number} holds a JSON array, expected one object a line: name the file .json, "
                "or convert it with jq -c '.[]'"
            )
        if not isinstance(content, dict):
            raise ValueError(f"line {number} holds {content!r}, expected an object")
        yield number, content


def _read_json(path: Path, header: Sequence[str]) -> pd.DataFrame:
    """An array of objects; a file that begins otherwise is read as JSON lines."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path, header)
    rows = json.loads(text)
    wrong = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ValueError(f"row {wrong} holds {rows[wrong]!r}, expected an object")
    return pd.DataFrame(rows).rename_axis("row")


def _read_tsv(path: Path, header: Sequence[str]) -> pd.DataFrame:
    # Not by pandas: GLUE's own files hold stray quotes, lone carriage returns and texts such as "null".
    lines = [line.removesuffix("\r") for line in _lines(path)]
    names = lines[0].split("\t")
    headless = bool(header) and len(names) == len(header) and not set(names) & set(header)
    names = list(header) if headless else names
    rows = {
        number: _fields(line.split("\t"), names, number)
        for number, line in enumerate(lines, start=1)
        if line and (headless or number > 1)
    }
    return _frame(rows, names)


def _read_csv(path: Path, _: Sequence[str]) -> pd.DataFrame:
    """Fields with commas, line feeds or quotes stand in quotes (RFC 4180). Semicolons separate the fields
    where the header has some and no comma."""
    lines = _lines(path)
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = ";" if ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.reader([f"{line}\n" for line in lines], delimiter=delimiter, strict=True)
    names, rows, start = next(reader, []), {}, reader.line_num
    for fields in reader:
        if fields:
            rows[start + 1] = _fields(fields, names, start + 1)
        start = reader.line_num
    return _frame(rows, names)


def _fields(fields: list[str], names: Sequence[str], number: int) -> list[str]:
    """A line's fields, one a column. Empty ones beyond the last column are left out."""
    if len(fields) < len(names) or any(fields[len(names) :]):
        raise ValueError(f"line {number} has {len(fields)} fields, the header names {len(names)}")
    return fields[: len(names)]


def _frame(rows: Mapping[int, list[str]], names: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows.values()), columns=list(names), dtype="str")
    return table.set_index(pd.Index(list(rows), name="line"))


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, cut at line feeds only: texts may hold every other sign that ends a line."""
    return _text(path).split("\n")


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


# Read directly, not through a library's cache of converted files, so that a changed file can never be read
# stale.
READERS: dict[str, Callable[[Path, Sequence[str]], pd.DataFrame]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "json": _read_json,
}
