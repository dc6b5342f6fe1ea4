"""Reads one split of a data set from a folder: parquet, JSON lines or tab-separated values, in one file or in
shards.

Every frame is indexed by where its rows stand in the file, so that a message can name the place: index
``line`` for text files (from 1, the header included), ``row`` for parquet (from 0).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from quantlab.config.checks import refuse_pointer

UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")  # the hub's file names


def read_split(folder: Path, stems: Sequence[str], header: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The rows of the split that is called by one of ``stems``, and the name of its file for messages.

    ``header`` names the columns of a tab-separated file whose first line has as many fields and none of these
    names. Raises FileNotFoundError or ValueError that names the file and the line.
    """
    files = find_files(folder, stems)
    frames = [_read(path, header) for path in files]
    if len(files) == 1:
        return frames[0], str(files[0])
    together = files[0].with_name(f"{_stem(files[0])}-*{files[0].suffix}")
    return pd.concat(frames, ignore_index=True).rename_axis("row"), str(together)


def find_files(folder: Path, stems: Sequence[str]) -> list[Path]:
    """The one file of a split, or all of its shards in order.

    Raises FileNotFoundError or ValueError that says what is expected and what is there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"task.data_dir={folder} is no folder; expected one with {expected(stems)}")
    files = sorted(path for path in folder.iterdir() if path.suffix[1:] in READERS and _stem(path) in stems)
    if len({(_stem(path), path.suffix, _total(path)) for path in files}) > 1:
        raise ValueError(
            f"{folder} has {' and '.join(path.name for path in files)} for the same split; keep one"
        )
    if not files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{folder} has no {expected(stems)}; it holds {there}")
    if (total := _total(files[0])) is not None and len(files) < total:
        whole = [f"{_stem(files[0])}-{number:05}-of-{total:05}{files[0].suffix}" for number in range(total)]
        missing = sorted(set(whole) - {path.name for path in files})
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing[:5])}: it has {len(files)} of {total} shards"
        )
    return files


def expected(stems: Sequence[str]) -> str:
    """``{train}.{parquet,jsonl,tsv}``: the file names of a split, for messages."""
    return f"{stems[0] if len(stems) == 1 else '{' + ','.join(stems) + '}'}.{{{','.join(READERS)}}}"


def _stem(path: Path) -> str:
    """The split's name in a file's name: ``train`` of ``train.parquet`` and of
    ``train-00000-of-00002.parquet``."""
    match = SHARD.fullmatch(path.stem)
    return match["stem"] if match else path.stem


def _total(path: Path) -> int | None:
    """How many shards a shard's name counts; None where the file is no shard."""
    match = SHARD.fullmatch(path.stem)
    return int(match["total"]) if match else None


def _read(path: Path, header: Sequence[str]) -> pd.DataFrame:
    suffix = path.suffix[1:]
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(len(UTF16[0]))
    if suffix != "parquet" and start.startswith(UTF16):
        raise ValueError(
            f"{path} is UTF-16, expected UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} converts it"
        )
    try:
        return READERS[suffix](path, header)
    except (ValueError, OSError) as error:  # what pandas and pyarrow raise on a broken file
        raise ValueError(f"{path} cannot be read as {suffix}: {error}") from error


def _read_parquet(path: Path, _: Sequence[str]) -> pd.DataFrame:
    return pd.read_parquet(path).reset_index(drop=True).rename_axis("row")


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
                f"line {number} holds a JSON array, expected one object a line: jq -c '.[]' converts it"
            )
        if not isinstance(content, dict):
            raise ValueError(f"line {number} holds {content!r}, expected an object")
        yield number, content


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
    return pd.DataFrame(list(rows.values()), columns=names, index=pd.Index(rows, name="line"), dtype=str)


def _fields(fields: list[str], names: Sequence[str], number: int) -> list[str]:
    """A line's fields, one a column. Tabs at its end are no fields."""
    if len(fields) < len(names) or any(fields[len(names) :]):
        raise ValueError(f"line {number} has {len(fields)} fields, the header names {len(names)}")
    return fields[: len(names)]


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, cut at line feeds only: texts may hold every other sign that ends a line."""
    return path.read_bytes().decode("utf-8-sig").split("\n")


# Read directly, not through a library's cache of converted files, so that a changed file can never be read
# stale.
READERS: dict[str, Callable[[Path, Sequence[str]], pd.DataFrame]] = {
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "tsv": _read_tsv,
}
