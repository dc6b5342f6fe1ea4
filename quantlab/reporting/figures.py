"""Plots of a study as plotly's own JSON, each with its data as a table. Colours are set by the page, for its
theme."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from quantlab.reporting.comparing import ComparedTrial, seed_overrides
from quantlab.reporting.shapes import Plot, Trace, axis, bars, level_line, plain
from quantlab.results.plots import COLOURS, axis_positions
from quantlab.results.reading import Study, TrialRecord
from quantlab.results.table import short_names

LINES = 8  # that one plot can show apart


def pareto(study: Study, rows: Sequence[ComparedTrial]) -> Plot | None:
    """Accuracy against latency where it is known, else against size; what nothing beats in both is marked."""
    shown = [row for row in rows if math.isfinite(row.value)]
    if not shown:
        return None
    real = [_latency(row.trial) for row in shown]
    timed = any(math.isfinite(value) for value in real)
    table = pd.DataFrame(
        {
            "trial": [row.trial.name for row in shown],
            "score": [100 * row.value for row in shown],
            "low": [100 * row.low for row in shown],
            "high": [100 * row.high for row in shown],
            "size_mb": [row.trial.number_of("size_bytes") / 1e6 for row in shown],
            "latency_p50_ms": real,
            "engine": [row.trial.tags.get("engine", "") for row in shown],
        }
    )
    table["simulated"] = table["engine"] == "simulated"
    cost = ["latency_p50_ms", "size_mb"] if timed else ["size_mb"]
    counted = table["score"].notna() & table[cost].notna().all(axis=1) & ~(table["simulated"] & timed)
    table["front"] = front(np.column_stack([-table["score"], table[cost]]), counted.to_numpy())
    x = cost[0]
    titles = {"latency_p50_ms": "p50 of a batch (ms)", "size_mb": "size (MB)"}
    traces = [
        _points(table[table["front"]].sort_values(x), x, "on the front", COLOURS[1], "diamond", line=True),
        _points(table[~table["front"] & ~table["simulated"]], x, "beaten", COLOURS[0], "circle"),
        _points(
            table[~table["front"] & table["simulated"]],
            x,
            "latency only simulated",
            COLOURS[3],
            "circle-open",
        ),
    ]
    caption = "Up and to the left is better; what is on the front, no other trial beats. "
    sized = "Larger marks take more memory; a latency that was only simulated is never on the front."
    caption += sized if timed else "No latency was measured, so size alone is the cost."
    return Plot(
        id="pareto",
        title=f"Against {'latency and size' if timed else 'size'}",
        caption=caption,
        data=table,
        traces=[trace for trace in traces if trace["x"]],
        layout={"xaxis": axis(titles[x]), "yaxis": axis(f"{study.primary.replace('_', ' ')} (%)")},
    )


def _latency(trial: TrialRecord) -> float:
    return trial.number_of("latency_p50_ms")


def front(costs: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Which rows of (N, costs), the less the better, no other counted row beats: as good in all, better in
    one."""
    no_worse = (costs[None] <= costs[:, None]).all(axis=2)
    better = (costs[None] < costs[:, None]).any(axis=2)
    return np.asarray(counted & ~(no_worse & better & counted[None]).any(axis=1))


def _points(table: pd.DataFrame, x: str, name: str, colour: str, symbol: str, line: bool = False) -> Trace:
    largest = table["size_mb"].max() if len(table) else 1.0
    size = [8 + 10 * math.sqrt(value / largest) for value in table["size_mb"]] if x != "size_mb" else 10
    return {
        "type": "scatter",
        "mode": "lines+markers" if line else "markers",
        "name": name,
        "x": plain(table[x]),
        "y": plain(table["score"]),
        "text": list(table["trial"]),
        "customdata": [plain(row) for row in table[["low", "high", "size_mb"]].to_numpy(object)],
        "error_y": bars(table["low"], table["high"], table["score"]) | {"thickness": 0.8, "width": 2},
        "marker": {"color": colour, "symbol": symbol, "size": size, "line": {"width": 1}},
        "line": {"color": colour, "width": 1, "dash": "dot", "shape": "hv"},
        "hovertemplate": "<b>%{text}</b><br>%{y:.2f} % (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
        "<br>" + ("%{x:.1f} ms, " if x != "size_mb" else "") + "%{customdata[2]:.1f} MB<extra></extra>",
    }


def against_axes(study: Study, rows: Sequence[ComparedTrial]) -> list[Plot]:
    """The metric against every swept override that is no seed."""
    short = short_names(study.swept)
    repeated = set(seed_overrides(study))
    names = [name for name in study.swept if name not in repeated]
    plots = [_against(study, rows, name, short[name]) for name in names]
    return [plot for plot in plots if plot is not None]


def _against(study: Study, rows: Sequence[ComparedTrial], name: str, short: str) -> Plot | None:
    """The trials that differ in one override alone, a line for each setting of the others."""
    table = _crossed(study, rows, name)
    levels = axis_positions(table[name]) if len(table) else {}
    if len(levels) < 2:
        return None
    table["place"] = table[name].map(levels)
    places = sorted(levels.values())
    gap = min(after - before for before, after in pairwise(places))
    groups = list(table.groupby("with", sort=False))
    numeric = all(map(_is_number, levels))
    traces = (
        [_cloud(table), _means(table, numeric)]
        if len(groups) > LINES
        else [
            _line(
                line,
                str(label) or short,
                index,
                0.3 * gap / len(groups) * (index - (len(groups) - 1) / 2),
                numeric,
            )
            for index, (label, line) in enumerate(groups)
        ]
    )
    caption = (
        f"Every trial as a dot, and the mean of each level of {name}."
        if len(groups) > LINES
        else (
            "With simultaneous 95 % intervals: those of the difference to FP32, paired over "
            "examples, around FP32's."
        )
    )
    fp32 = 100 * study.finished[0].number_of(f"{study.primary}_fp32")
    ticks = {"tickmode": "array", "tickvals": list(levels.values()), "ticktext": list(levels)}
    return Plot(
        id=f"axis-{study.swept.index(name)}",
        title=f"Against {short}",
        caption=caption,
        traces=traces,
        data=table.drop(columns="place"),
        layout={
            "xaxis": axis(name, range=[places[0] - 0.5 * gap, places[-1] + 0.5 * gap], **ticks),
            "yaxis": axis(f"{study.primary.replace('_', ' ')} (%)"),
            **level_line(fp32, "FP32"),
        },
    )


def _crossed(study: Study, rows: Sequence[ComparedTrial], name: str) -> pd.DataFrame:
    """The finished trials that set an override and have a sibling that differs in it alone, seeds aside."""
    shown = [row for row in rows if name in row.trial.settings and math.isfinite(row.value)]
    repeated = set(seed_overrides(study))
    others = [other for other in study.swept if other != name and other not in repeated]
    varying = [other for other in others if len({row.trial.settings.get(other) for row in shown}) > 1]
    short = short_names(varying)
    table = pd.DataFrame(
        {
            "trial": [row.trial.name for row in shown],
            name: [row.trial.settings[name] for row in shown],
            "score": [100 * row.value for row in shown],
            "low": [100 * row.low for row in shown],
            "high": [100 * row.high for row in shown],
            "with": [
                ", ".join(f"{short[o]}={row.trial.settings[o]}" for o in varying if o in row.trial.settings)
                for row in shown
            ],
        }
    )
    return table[table.groupby("with")[name].transform("nunique") > 1].copy()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


HOVER = "<b>%{text}</b><br>%{y:.2f} % (%{customdata[0]:.2f} to %{customdata[1]:.2f})<extra></extra>"


def _line(table: pd.DataFrame, label: str, index: int, dodge: float, joined: bool) -> Trace:
    table = table.sort_values("place")
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": label,
        "x": [place + dodge for place in table["place"]],
        "y": plain(table["score"]),
        "text": list(table["trial"]),
        "customdata": [plain(row) for row in table[["low", "high"]].to_numpy(object)],
        "error_y": bars(table["low"], table["high"], table["score"]),
        "hovertemplate": HOVER,
        "line": {"color": COLOURS[index % 6], "width": 1.5, "dash": ("solid", "dash")[index // 6]},
        "marker": {"color": COLOURS[index % 6], "symbol": index, "size": 8},
    }


def _cloud(table: pd.DataFrame) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "trials",
        "x": plain(table["place"]),
        "y": plain(table["score"]),
        "text": list(table["trial"]),
        "hovertemplate": HOVER,
        "customdata": [plain(row) for row in table[["low", "high"]].to_numpy(object)],
        "marker": {"color": COLOURS[5], "size": 7, "opacity": 0.6},
    }


def _means(table: pd.DataFrame, joined: bool) -> Trace:
    means = table.groupby("place")["score"].agg(["mean", "count"])
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": "mean",
        "x": plain(means.index),
        "y": plain(means["mean"]),
        "customdata": plain(means["count"]),
        "hovertemplate": "mean of %{customdata}: %{y:.2f} %<extra></extra>",
        "line": {"color": COLOURS[1], "width": 2},
        "marker": {"color": COLOURS[1], "size": 9, "symbol": "diamond"},
    }
