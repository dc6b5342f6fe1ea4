"""The results of a finished sweep, and its tables as CSV, Markdown and LaTeX."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from quantlab.config.checks import one_of
from quantlab.results.scale import Scale, losses, scale_of
from quantlab.storage.files import write_whole


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """All rows of a sweep, those that failed included.

    ``table`` has one row a trial, in the sweep's order: ``number`` from 1, ``block``, ``name``, ``status``
    ("done", "reused" or "failed"), ``key``, ``reference`` (whether it is FP32 itself); one column of text a
    swept setting ("" where a row leaves the default); the trial's scalar metrics (NaN where it has none);
    ``alarms`` and ``error`` ("" if none).
    """

    table: pd.DataFrame
    primary: str  # a metric M that has M_fp32, and M_drop or M_ratio with its interval, beside it
    swept: tuple[str, ...]
    title: str  # the sweep's question
    correct: np.ndarray | None  # (rows, units): SavedAnswers.units, NaN where failed; None where none compare

    @property
    def scale(self) -> Scale:
        """How the primary metric reads."""
        return scale_of(self.primary)

    @property
    def axis(self) -> str:
        """The primary metric's name and unit for an axis."""
        return self.scale.axis

    @property
    def failed(self) -> pd.Series:
        """Which rows failed."""
        return self.table["status"] == "failed"

    @property
    def reference(self) -> pd.Series:
        """Which rows are the unquantized FP32 network itself."""
        return self.table["reference"]

    def metric(self, name: str) -> pd.Series:
        """A metric of every row; NaN where no trial has it."""
        return self.table[name] if name in self.table else pd.Series(math.nan, index=self.table.index)

    def losses(self) -> pd.DataFrame:
        """What every row lost against FP32, as fractions: ``loss``, ``low`` to ``high`` (95 %, paired)."""
        return losses(self.scale, self.table)

    def shown(self) -> pd.DataFrame:
        """The primary metric as it is shown: ``value``, ``low`` to ``high`` (95 %, paired with FP32), and
        ``fp32``'s."""
        fp32, lost = self.metric(f"{self.primary}_fp32"), self.losses()
        ends = [self.scale.ends(*row) for row in zip(fp32, lost["low"], lost["high"], strict=True)]
        low, high = np.array(ends, dtype=float).reshape(-1, 2).T
        columns = {"value": self.metric(self.primary), "low": low, "high": high, "fp32": fp32}
        return self.scale.factor * pd.DataFrame(columns)

    def scores(self) -> np.ndarray:
        """(rows, units), the more the better, whose mean over units is the primary metric, or minus the
        logarithm of a relative one; one column where it is no such mean."""
        score = self.scale.score
        if self.correct is not None and (score.right_of or score.relative):
            return self.correct
        values = self.metric(self.primary).to_numpy(np.float64)[:, None]
        return -np.log(values) if score.relative else self.scale.sign * values

    def where(self, rows: pd.Series) -> "Results":
        """The rows for which the mask is true."""
        correct = None if self.correct is None else self.correct[rows.to_numpy()]
        return replace(self, table=self.table[rows], correct=correct)

    def block(self, name: str) -> "Results":
        """The rows of a block. Raises ValueError where there is no such block."""
        one_of("block", name, self.table["block"].unique())
        return self.where(self.table["block"] == name)

    def require_finished(self) -> None:
        """Raises ValueError that names the rows that failed, if any did."""
        if self.failed.any():
            names = ", ".join(self.table["name"][self.failed])
            raise ValueError(f"every trial is needed here, but {self.failed.sum()} failed: {names}")


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Writes ``results.csv`` with everything, ``results.md`` and ``results.tex`` (booktabs) for readers."""
    shown = concise(results)
    tables = {"csv": results.table.to_csv(index=False), "md": markdown(shown), "tex": latex(shown)}
    return write_texts(folder, {f"results.{suffix}": text for suffix, text in tables.items()})


SPEED = "speed-up over FP32"
P50 = "p50 (ms)"


def concise(results: Results) -> pd.DataFrame:
    """The table as text for readers; empty columns are left out."""
    table, shown_scores, scale = results.table, results.shown(), results.scale
    first_lines = table["error"].str.strip().str.split("\n").str[0]
    columns = {
        "name": table["name"],
        **{short: table[name] for name, short in short_names(untold(results)).items()},
        results.axis: number_texts(shown_scores["value"], ".2f"),
        loss_title(scale): loss_texts(results),
        "verdict": verdict_texts(results),
        "rows": number_texts(results.metric("rows_answered"), ".0f"),
        "same as FP32 (%)": number_texts(100 * results.metric("agreement_fp32"), ".1f"),
        **time_columns(results, ""),
        f"{results.axis}, deployed": number_texts(
            scale.factor * results.metric(f"{results.primary}_deployed"), ".2f"
        ),
        **time_columns(results, "deployed_"),
        "size (MB)": number_texts(results.metric("size_bytes") / 1e6, ".1f"),
        "alarms": table["alarms"],
        "status": table["status"].mask(results.failed, "failed: " + first_lines),
    }
    shown = pd.DataFrame(columns)
    return shown.loc[:, (shown != "").any()]


def untold(results: Results) -> list[str]:
    """The swept overrides that row names do not tell apart."""
    names = results.table.groupby("name")
    return [name for name in results.swept if (names[name].nunique() > 1).any()]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The last part of each override's name, or all of it where two would read alike."""
    names = list(names)
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}


def setting(name: str, value: str) -> str:
    """``k=4``, or ``k=default`` where a row leaves the override out."""
    return f"{name}={value or 'default'}"


def ordered(values: Iterable[str]) -> list[str]:
    """The distinct values: by number where all are numbers, else as they come."""
    levels = list(dict.fromkeys(values))
    numbers = pd.to_numeric(pd.Series(levels, dtype=object), errors="coerce")
    return sorted(levels, key=float) if np.isfinite(numbers).all() else levels


def drop_text(mean: float, low: float, high: float) -> str:
    """``+0.52 (-0.10 to +1.14)``: a difference in points with its 95 % interval where there is one; "" for
    NaN."""
    interval = "" if math.isnan(low) else f" ({low:+z.2f} to {high:+z.2f})"
    return "" if math.isnan(mean) else f"{mean:+z.2f}{interval}"


def loss_title(scale: Scale) -> str:
    """The title of a column of losses against FP32."""
    return "drop in points (95 % interval)" if scale.percent else "ratio to FP32 (95 % interval)"


def loss_text(scale: Scale, loss: float, low: float, high: float) -> str:
    """A loss against FP32 in points, or as a ratio to FP32, with its 95 % interval; "" for NaN."""
    if scale.percent:
        return drop_text(100 * loss, 100 * low, 100 * high)
    interval = "" if math.isnan(low) else f" ({1 + low:.3f} to {1 + high:.3f})"
    return "" if math.isnan(loss) else f"{1 + loss:.3f}{interval}"


def loss_texts(results: Results) -> pd.Series:
    """:func:`loss_text` of every row; "" for FP32 itself."""
    texts = [loss_text(results.scale, *row) for row in results.losses().to_numpy()]
    return pd.Series(texts, results.table.index, dtype=object).mask(results.reference, "")


def verdict_texts(results: Results) -> pd.Series:
    """``keeps`` or ``loses`` of every row that was to decide it; "" of the others."""
    return results.metric("keeps").map({1.0: "keeps", 0.0: "loses"}).astype(object).fillna("")


def time_columns(results: Results, prefix: str) -> dict[str, pd.Series]:
    """The column that tells rows apart by speed: the speed-up where any row has one, else the median time.

    A speed-up is measured in turns with FP32. Median times are not: rows are timed minutes apart, and differ
    by what else the machine did. They stand in ``results.csv`` only.
    """
    after = ", deployed" if prefix else ""
    if results.metric(f"{prefix}speedup_vs_fp32").notna().any():
        return {f"{SPEED}{after}": speed_texts(results, prefix)}
    return {f"{P50}{after}": number_texts(results.metric(f"{prefix}latency_p50_ms"), ".1f")}


def speed_texts(results: Results, prefix: str) -> pd.Series:
    """``2.31 (2.28 to 2.34)``: the speed-up with its 95 % interval; 1 for FP32 in torch; "" where none was
    measured."""
    value, low, high = (
        number_texts(results.metric(f"{prefix}speedup_{name}"), ".2f")
        for name in ("vs_fp32", "ci95_low", "ci95_high")
    )
    measured = (value + " (" + low + " to " + high + ")").where(value != "", "")
    return measured if prefix else measured.mask(results.reference, "1")


def number_texts(values: pd.Series, spec: str) -> pd.Series:
    """Numbers in a format; "" for NaN."""
    return values.map(f"{{:{spec}}}".format, na_action="ignore").astype(object).fillna("")


def markdown(frame: pd.DataFrame) -> str:
    """The table as Markdown; columns of numbers are aligned right."""
    sides = ["right" if numeric else "left" for numeric in _numeric(frame)]
    escaped = frame.replace(r"\|", r"\\|", regex=True)
    return str(escaped.to_markdown(index=False, disable_numparse=True, colalign=sides)) + "\n"


def latex(frame: pd.DataFrame) -> str:
    """The table as LaTeX; columns of numbers are aligned right."""
    sides = "".join("r" if numeric else "l" for numeric in _numeric(frame))
    return frame.to_latex(index=False, escape=True, column_format=sides)


def write_texts(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Writes text files, given by name, into a folder. Returns their paths."""
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def _numeric(frame: pd.DataFrame) -> list[bool]:
    return [bool(frame[name].str.fullmatch(r"[-+]?\d.*|").all()) for name in frame]
