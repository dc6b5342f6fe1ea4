"""The table of trials: each column's texts, and the values that they sort by."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from quantlab.reporting.comparing import ComparedTrial
from quantlab.results.reading import Study, TrialRecord
from quantlab.results.table import P50, SPEED, ordered, short_names

MB = 1e6
DEPLOYED = "deployed_"  # before the metrics of the exported file


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A text, the value it sorts by ("" and NaN last), and a note in small print."""

    text: str
    value: float | str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table: a title, what it means, and one cell a row."""

    title: str
    help: str
    numeric: bool
    cells: tuple[Cell, ...]
    folded: bool = False  # whether the page shows it only on request

    @property
    def empty(self) -> bool:
        """Whether all its cells are empty."""
        return all(not cell.text for cell in self.cells)


def columns(study: Study, rows: Sequence[ComparedTrial]) -> list[Column]:
    """The columns that are not empty. The page folds p-values and settings: verdicts and names say them."""
    scale = study.scale
    swept = [_setting(name, short, rows) for name, short in short_names(study.swept).items()]
    every = [
        _text("trial", "its name in the sweep", rows, lambda row: row.trial.name),
        _numbers(
            scale.axis, "simultaneous 95 % interval: that of the difference, around FP32's", rows, _score
        ),
        _numbers(
            scale.change_title,
            f"{'less' if scale.percent else 'over'} FP32 on the same examples; paired 95 % interval, "
            "simultaneous over all trials of this page",
            rows,
            _difference,
        ),
        replace(
            _numbers("p (corrected)", "two-sided, corrected for all trials of this page", rows, _p),
            folded=True,
        ),
        _cells("verdict", "against FP32, at 5 % after the correction", False, map(_verdict, rows)),
        _numbers("same as FP32 (%)", "share of examples answered as FP32 answers them", rows, _agreement),
        _time(rows, ""),
        _time(rows, DEPLOYED),
        _numbers("size (MB)", "parameters packed at the plan's bits, with ranges", rows, _size),
        _text("alarms", "explained below", rows, lambda row: ", ".join(alarm_names(row.trial))),
        *swept,
    ]
    return [column for column in every if not column.empty]


def _time(rows: Sequence[ComparedTrial], prefix: str) -> Column:
    """The speed-up where any row has one, else the median time: see ``results.table.time_columns``."""
    after, what = (", deployed", "the exported file on its runtime; ") if prefix else ("", "")
    if any(math.isfinite(row.trial.number_of(f"{prefix}speedup_vs_fp32")) for row in rows):
        about = f"{what}measured in turns with FP32 in torch, over pairs of processes; 95 % interval"
        return _numbers(f"{SPEED}{after}", about, rows, lambda row: speed(row.trial, prefix))
    about = f"{what}median time of a batch, with what computed it; times of two rows do not compare"
    return _numbers(f"{P50}{after}", about, rows, lambda row: latency(row.trial, prefix))


def frame(columns: Sequence[Column]) -> pd.DataFrame:
    """The table as text, for Markdown and LaTeX. Notes stand in brackets."""
    texts = {
        column.title: [
            f"{cell.text} ({cell.note})".replace("−", "-") if cell.note else cell.text.replace("−", "-")
            for cell in column.cells
        ]
        for column in columns
    }
    return pd.DataFrame(texts, dtype=object)


def alarm_names(trial: TrialRecord) -> list[str]:
    """The names of a trial's alarms, each once."""
    return list(dict.fromkeys(alarm["name"] for alarm in trial.alarms))


def number(value: float, spec: str) -> str:
    """A number in a format, with a typographic minus; "" for NaN."""
    return "" if math.isnan(value) else f"{value:{spec}}".replace("-", "−")


def interval(low: float, high: float, spec: str) -> str:
    """``−0.10 to 1.14``; "" where an end is NaN."""
    return "" if math.isnan(low) or math.isnan(high) else f"{number(low, spec)} to {number(high, spec)}"


def engine(trial: TrialRecord) -> str:
    """The engine that computed a trial's latency."""
    return trial.tags.get("engine", "")


def latency(trial: TrialRecord, prefix: str = "") -> Cell:
    """The median latency, with the engine that it belongs to."""
    value = trial.number_of(f"{prefix}latency_p50_ms")
    runtime = f"{trial.tags.get('runtime', '')}, {trial.tags.get('deployed_arithmetic', '')}"
    return _cell(value, ".1f", "" if math.isnan(value) else runtime if prefix else engine(trial))


def speed(trial: TrialRecord, prefix: str = "") -> Cell:
    """The speed-up over FP32 with its interval; 1 for FP32 in torch."""
    if trial.reference and not prefix:
        return Cell(text="1", value=1.0)
    value, low, high = (
        trial.number_of(f"{prefix}speedup_{part}") for part in ("vs_fp32", "ci95_low", "ci95_high")
    )
    simulated = trial.tags.get("deployed_arithmetic" if prefix else "engine") == "simulated"
    note = interval(low, high, ".2f") + (", simulated" if simulated else "")
    return _cell(value, ".2f", note if math.isfinite(value) else "")


def _score(row: ComparedTrial) -> Cell:
    factor, spec = row.scale.factor, ".1f" if row.scale.percent else ".2f"
    return _cell(factor * row.value, ".2f", interval(factor * row.low, factor * row.high, spec))


def _difference(row: ComparedTrial) -> Cell:
    comparison = row.comparison
    low, high = (comparison.low, comparison.high) if comparison else (math.nan, math.nan)
    ends, spec = sorted((row.scale.change(-low), row.scale.change(-high))), row.scale.change_format
    return _cell(row.scale.change(-row.difference), spec, interval(ends[0], ends[1], spec))


def _p(row: ComparedTrial) -> Cell:
    return Cell(text=p_text(row.p), value=row.p)


def p_text(p: float) -> str:
    """A p-value with two digits, or a bound; "" for NaN."""
    return "" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _agreement(row: ComparedTrial) -> Cell:
    return _cell(100 * row.trial.number_of("agreement_fp32"), ".1f")


def _size(row: ComparedTrial) -> Cell:
    return _cell(row.trial.number_of("size_bytes") / MB, ".1f")


def _cell(value: float, spec: str, note: str = "") -> Cell:
    return Cell(text=number(value, spec), value=value, note=note)


def _setting(name: str, short: str, rows: Sequence[ComparedTrial]) -> Column:
    """A swept override; its levels sort by number where they are numbers."""
    values = [row.trial.settings.get(name, "") for row in rows]
    places = {level: place for place, level in enumerate(ordered(value for value in values if value))}
    cells = (Cell(text=value, value=float(places[value]) if value else math.nan) for value in values)
    column = _cells(short, f"the override {name}; empty: the default", False, cells)
    return replace(column, folded=True)


def _text(
    title: str, about: str, rows: Sequence[ComparedTrial], read: Callable[[ComparedTrial], str]
) -> Column:
    return _cells(title, about, False, (Cell(text=read(row), value=read(row)) for row in rows))


def _verdict(row: ComparedTrial) -> Cell:
    """The verdict, its numbers beneath it."""
    words, _, rest = row.verdict.partition(" with ")
    return Cell(text=words, value=row.verdict, note=rest)


def _numbers(
    title: str, about: str, rows: Sequence[ComparedTrial], read: Callable[[ComparedTrial], Cell]
) -> Column:
    return _cells(title, about, True, map(read, rows))


def _cells(title: str, about: str, numeric: bool, cells: Iterable[Cell]) -> Column:
    return Column(title=title, help=about, numeric=numeric, cells=tuple(cells))
