"""Readers of one file each, by the end of its name.

Each takes the file and the columns' names for where a file has none, and returns a frame whose index says
where the rows stand: ``line`` or ``row``. They raise ValueError, OSError or csv.Error.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

LONGEST_FIELD = 2**31 - 1  # characters of a CSV field; Python's own limit is 131,072


def _read_parquet(path: Path, _: Sequence[str]) -> pd.DataFrame:
    return pd.read_parquet(path).reset_index(drop=True).rename_axis("row")


def recorded_classes(path: Path) -> dict[str, tuple[str, ...]]:
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
