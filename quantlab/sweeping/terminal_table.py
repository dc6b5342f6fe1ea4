"""A sweep's table for a terminal of 80 columns: no word is broken, a row has at most two lines."""

import math
import textwrap
from collections.abc import Iterator

import pandas as pd

from quantlab.cli.console import shortened
from quantlab.results.scale import Scale
from quantlab.results.table import Results, short_names, untold, verdict_texts

GAP = "  "
LEAST_NAME = 16  # columns of a trial's name
LINES = 2  # that a trial's name may take


def table_lines(results: Results, width: int) -> Iterator[str]:
    """The table's lines, at most ``width`` characters each where the numbers leave 16 for the names.

    Alarms are counted in the table; below it stands which trials, by number, raised which.
    """
    numbers = _numbers(results)
    names = ["trial", *_names(results)]
    widths = [max(map(len, column)) for column in numbers]
    used = sum(widths) + len(GAP) * len(widths)
    room = min(max(LEAST_NAME, width - used), max(map(len, names)))
    for index, name in enumerate(names):
        cells = [column[index].rjust(size) for column, size in zip(numbers[1:], widths[1:], strict=True)]
        first, *rest = _wrapped(name, room)
        number = numbers[0][index].rjust(widths[0])
        yield GAP.join([number, first.ljust(room), *cells]).rstrip()
        yield from (" " * (widths[0] + len(GAP)) + line for line in rest)
    yield from _alarms(results)


def _numbers(results: Results) -> list[list[str]]:
    """Columns of text, each with its title on top; the trials' numbers come first. Columns that no trial
    fills are left out."""
    scores, table, scale = results.shown(), results.table, results.scale
    alarms = table["alarms"].map(lambda names: len(names.split(", ")) if names else 0)
    columns = {
        results.axis.replace("(%)", "%"): _texts(scores["value"], ".2f"),
        "drop (95 % interval)" if scale.percent else "ratio (95 % interval)": [
            "" if reference else _loss(scale, *lost)
            for lost, reference in zip(results.losses().to_numpy(), results.reference, strict=True)
        ],
        "verdict": list(verdict_texts(results)),
        "rows": _texts(results.metric("rows_answered"), ".0f"),
        "speed-up": _texts(results.metric("speedup_vs_fp32"), ".2f"),
        "deployed %" if scale.percent else "deployed": _texts(
            scale.factor * results.metric(f"{results.primary}_deployed"), ".2f"
        ),
        "its speed-up": _texts(results.metric("deployed_speedup_vs_fp32"), ".2f"),
        "MB": _texts(results.metric("size_bytes") / 1e6, ".1f"),
        "alarms": [str(count or "") for count in alarms],
        "": ["failed" if failed else "" for failed in results.failed],
    }
    number = ["#", *table["number"].map(str)]
    return [number, *([title, *cells] for title, cells in columns.items() if any(cells))]


def _loss(scale: Scale, loss: float, low: float, high: float) -> str:
    """``+7.1 (+5.6 to +8.5)``, in points; or as a ratio, ``2.09 (1.99 to 2.20)``."""
    spec, factor, start = ("+z.1f", 100, 0) if scale.percent else (".3f", 1, 1)
    drop, low, high = (start + factor * value for value in (loss, low, high))
    interval = "" if math.isnan(low) else f" ({low:{spec}} to {high:{spec}})"
    return "" if math.isnan(drop) else f"{drop:{spec}}{interval}"


def _names(results: Results) -> list[str]:
    """Each trial's name, with the swept settings in which trials of one name differ."""
    short = short_names(untold(results))
    return [
        ", ".join([row["name"], *(f"{short[name]}={row[name]}" for name in short if row[name])])
        for _, row in results.table.iterrows()
    ]


def _wrapped(name: str, room: int) -> list[str]:
    """A name on at most two lines, broken between words; a word that is too long loses its middle."""
    words = " ".join(shortened(word, room) for word in name.split())
    return textwrap.wrap(
        words, room, max_lines=LINES, placeholder=" …", break_long_words=False, break_on_hyphens=False
    ) or [""]


def _texts(values: pd.Series, spec: str) -> list[str]:
    return ["" if math.isnan(value) else format(value, spec) for value in values]


def _alarms(results: Results) -> Iterator[str]:
    """``alarm wasted_levels: trials 2, 4, 11``."""
    raised: dict[str, list[str]] = {}
    for number, names in zip(results.table["number"], results.table["alarms"], strict=True):
        for name in filter(None, names.split(", ")):
            raised.setdefault(name, []).append(str(number))
    for name, numbers in raised.items():
        yield f"alarm {name}: {'trial' if len(numbers) == 1 else 'trials'} {', '.join(numbers)}"
