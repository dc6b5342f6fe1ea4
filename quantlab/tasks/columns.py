"""From columns of a table to texts and labels, with errors that name file, column and row."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from quantlab.config.checks import nearest
from quantlab.tasks.tables import DataColumn

HIDDEN = "-1"  # the hub's mark of a test set's hidden labels
NO_LABEL = ("", "-")  # texts that stand for a missing label
SHOWN = 10  # labels in a message


def pair_texts(columns: Sequence[DataColumn]) -> tuple[tuple[str, ...], ...]:
    """The texts of each row, one a column. Raises ValueError where a value is no text."""
    return tuple(zip(*map(_texts, columns), strict=True))


def require_no_blank(columns: Sequence[DataColumn]) -> None:
    """Raises ValueError where a text is empty or has only blanks."""
    for column in columns:
        blank = [row for row, text in enumerate(column.values) if not text.strip()]
        if blank:
            raise ValueError(
                f"{column.at(blank[0])}: the text is empty, as in {len(blank):,} of {len(column.values):,} "
                "rows; remove these rows"
            )


def class_indices(column: DataColumn, names: Sequence[str]) -> np.ndarray:
    """The class of each row, int64 (N,), as an index into ``names``.

    A label is a class's name, or its index where no name is itself a number; of two classes, false and true
    are 0 and 1. Raises ValueError, with the nearest name, on any other label.
    """
    allowed = dict(_numbered(names)) | {name: index for index, name in enumerate(names)}
    labels = list(map(label_name, column.values))
    for row, label in enumerate(labels):
        if label not in allowed or _is_missing(column.values[row]):
            raise ValueError(f"{column.at(row)}: {_unknown(column.values[row], names)}")
    return np.array([allowed[label] for label in labels], dtype=np.int64)


def classes_of(columns: Sequence[DataColumn]) -> dict[str, str]:
    """The classes that occur in label columns, in order, each with the place of its first row.

    Class names that the files record keep their order; whole numbers are sorted as numbers, texts as texts.
    Raises ValueError where a label is missing or cannot name a class, and where there is only one class.
    """
    recorded = columns[0].classes
    if recorded and all(column.classes == recorded for column in columns):
        return dict.fromkeys(recorded, columns[0].source)
    places: dict[str, str] = {}
    for column in columns:
        for row, value in enumerate(column.values):
            _require_class(column, row, value)
            places.setdefault(label_name(value), column.at(row))
    rows, last = sum(len(column.values) for column in columns), columns[-1]
    if len(places) < 2:
        hint = ", which marks the hidden labels of a test set" if HIDDEN in places else ""
        raise ValueError(
            f"{last.source}: column {last.name!r} holds one label only, {next(iter(places))!r}{hint}"
        )
    if len(places) > max(2, rows // 2):
        raise ValueError(
            f"{last.source}: column {last.name!r} holds {len(places):,} different labels in {rows:,} rows: "
            "it does not name classes"
        )
    numeric = all(name.lstrip("-").isdecimal() for name in places)
    return {name: places[name] for name in sorted(places, key=int if numeric else str)}


def scores(column: DataColumn, least: float, most: float) -> np.ndarray:
    """The scores of a regression, float32 (N,). Raises ValueError on a value outside [least, most]."""
    values = pd.to_numeric(pd.Series(column.values), errors="coerce").to_numpy(np.float32)
    bad = ~((values >= least) & (values <= most))  # true for NaN too
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{column.at(row)}: label {column.values[row]!r} is no score in [{least:g}, {most:g}]"
        )
    return values


def label_name(value: Any) -> str:
    """A label as a text: ``true`` for True; ``1`` for 1, and for 1.0 as a column with gaps holds it."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _texts(column: DataColumn) -> list[str]:
    for row, value in enumerate(column.values):
        if not isinstance(value, str):
            what = "nothing" if _is_missing(value) else f"{value!r}, which is no text"
            raise ValueError(f"{column.at(row)} holds {what}")
    return list(column.values)


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """What stands for the classes besides their names."""
    if any(name.lstrip("-").isdecimal() for name in names):
        return []
    booleans = [("false", 0), ("true", 1)] if len(names) == 2 else []
    return [(str(index), index) for index in range(len(names))] + booleans


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in NO_LABEL
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _require_class(column: DataColumn, row: int, value: Any) -> None:
    if _is_missing(value):
        raise ValueError(f"{column.at(row)}: {_unknown(value, ())}")
    if not isinstance(value, str | int) and not (isinstance(value, float) and value.is_integer()):
        raise ValueError(
            f"{column.at(row)}: label {value!r} names no class: texts, whole numbers and booleans do"
        )


def _unknown(value: Any, names: Sequence[str]) -> str:
    """Why a label is none of the classes."""
    label = label_name(value)
    if _is_missing(value):
        return f"label {label!r} means that there is none; remove the rows without a label"
    numbered = bool(_numbered(names))
    shown = [f"{index} ({name})" if numbered else name for index, name in enumerate(names[:SHOWN])]
    hint = ", which marks the hidden labels of a test set" if label == HIDDEN else nearest(label, names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"unknown label {label!r}{hint}; allowed are {', '.join(shown)}{more}"
