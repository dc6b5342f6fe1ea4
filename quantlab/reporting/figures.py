"""Plots of a study as plotly JSON, each with its data. The page sets the colours of its theme."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from quantlab.reporting.comparing import ComparedTrial, seed_overrides
from quantlab.reporting.recommendation import SAME_SIZE
from quantlab.reporting.shapes import Plot, Trace, axis, bars, level_line, plain
from quantlab.results.plots import COLOURS, axis_positions
from quantlab.results.reading import Study
from quantlab.results.scale import Scale
from quantlab.results.table import SPEED, short_names

LINES = 8  # in one plot, at most; more are drawn as dots and their mean


def pareto(study: Study, rows: Sequence[ComparedTrial]) -> Plot | None:
    """The metric against the speed-up where one was measured, else against size; the front is marked."""
    shown = [row for row in rows if math.isfinite(row.value)]
    if not shown:
        return None
    table = pd.DataFrame([_costs(row) for row in shown])
    timed = bool((table["speed"].notna() & ~table["reference"] & ~table["simulated"]).any())
    columns = ["score", "speed", "size_mb"] if timed else ["score", "size_mb"]
    counted = table[columns].notna().all(axis=1) & ~(table["simulated"] & timed)
    costs = [-study.scale.sign * table["score"].round(2).to_numpy(), same_size(table["size_mb"].to_numpy())]
    costs += [-same_speed(table[["speed", "speed_low", "speed_high"]].to_numpy(float))] if timed else []
    table["front"] = front(np.column_stack(costs), counted.to_numpy())
    x = "speed" if timed else "size_mb"
    on_front, simulated = table["front"], table["simulated"] & ~table["front"]
    traces = [
        _points(study.scale, table[on_front], x, "on the front", COLOURS[1], "diamond") | {"zorder": 1},
        _points(study.scale, table[~on_front & ~simulated], x, "beaten", COLOURS[0], "circle"),
        _points(study.scale, table[simulated], x, "speed only simulated", COLOURS[3], "circle-open"),
    ]
    name, names, more = _quality(study.scale)
    better = f"better in one of {name}, speed and size and as good in the others"
    same = f"{names} to the second decimal, speeds whose intervals overlap and sizes within 1 %"
    if not timed:
        better = f"{more} and as small, or smaller and as {more.removeprefix('more ')}"
        same = f"{names} to the second decimal and sizes within 1 %"
    caption = (
        f"{'Up' if study.scale.sign > 0 else 'Down'} and to the {'right' if timed else 'left'} is better. "
        "A trial is on the front if no other is "
    )
    caption += f"{better}; equal are {same}."
    caption += " Larger marks take more memory." if timed else ""
    titles = {"speed": SPEED, "size_mb": "size (MB)"}
    return Plot(
        id="pareto",
        title=f"Against {'speed and size' if timed else 'size'}",
        caption=caption,
        data=table.drop(columns=["reference", "simulated"]),
        traces=[trace for trace in traces if trace["x"]],
        height=480,
        labelled=True,
        layout={"xaxis": axis(titles[x]), "yaxis": axis(study.scale.axis, type=study.scale.spacing)},
    )


def _quality(scale: Scale) -> tuple[str, str, str]:
    """A score's name, its plural, and what a better trial is."""
    if scale.percent:
        return "accuracy", "accuracies", "more accurate"
    return scale.words, f"{scale.words.removesuffix('y')}ies", "better"


def _costs(row: ComparedTrial) -> dict[str, float | str | bool]:
    """A row of the plot's table. FP32 has the speed-up 1 by definition."""
    trial = row.trial
    ends = [trial.number_of(f"speedup_{part}") for part in ("vs_fp32", "ci95_low", "ci95_high")]
    speed, low, high = (1.0, 1.0, 1.0) if trial.reference else ends
    engine = trial.tags.get("engine", "")
    return {
        "trial": trial.name,
        "score": row.scale.factor * row.value,
        "low": row.scale.factor * row.low,
        "high": row.scale.factor * row.high,
        "size_mb": trial.number_of("size_bytes") / 1e6,
        "speed": speed,
        "speed_low": low,
        "speed_high": high,
        "engine": engine,
        "simulated": engine == "simulated",
        "reference": trial.reference,
    }


def same_size(sizes: np.ndarray) -> np.ndarray:
    """Each size (N,), or the smallest that it exceeds by at most 1 %: ranges and groups differ by bytes."""
    groups, least = sizes.copy(), math.nan
    for index in np.argsort(sizes):
        least = least if sizes[index] <= SAME_SIZE * least else float(sizes[index])
        groups[index] = least
    return groups


def same_speed(speeds: np.ndarray) -> np.ndarray:
    """Each speed, or the highest of those whose interval its own meets; columns (N, 3): speed, low, high."""
    groups, fastest, bottom = speeds[:, 0].copy(), math.nan, math.inf
    for index in np.argsort(-speeds[:, 0]):
        speed, low, high = map(float, speeds[index])
        if not high >= bottom:
            fastest, bottom = speed, low
        groups[index] = fastest
    return groups


def front(costs: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The rows of (N, costs), the lower the better, that no other counted row beats.

    A row beats another that is nowhere lower and somewhere higher. Returns bool (N,).
    """
    no_worse = (costs[None] <= costs[:, None]).all(axis=2)
    better = (costs[None] < costs[:, None]).any(axis=2)
    return np.asarray(counted & ~(no_worse & better & counted[None]).any(axis=1))


def _points(scale: Scale, table: pd.DataFrame, x: str, name: str, colour: str, symbol: str) -> Trace:
    relative = np.sqrt(table["size_mb"] / table["size_mb"].max())
    speed = "%{x:.2f} times FP32's speed, " if x == "speed" else ""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": plain(table[x]),
        "y": plain(table["score"]),
        "text": list(table["trial"]),
        "customdata": [plain(row) for row in table[["low", "high", "size_mb"]].to_numpy(object)],
        "error_y": bars(table["low"], table["high"], table["score"]) | {"thickness": 0.8, "width": 2},
        "marker": {
            "color": colour,
            "symbol": symbol,
            "size": 10 if x == "size_mb" else plain(8 + 10 * relative),
            "line": {"width": 1},
        },
        "hovertemplate": f"{_hover(scale)}<br>{speed}%{{customdata[2]:.1f}} MB<extra></extra>",
    }


def against_axes(study: Study, rows: Sequence[ComparedTrial]) -> list[Plot]:
    """A plot for every swept override but seeds: the metric against its levels."""
    short = short_names(study.swept)
    repeated = set(seed_overrides(study))
    names = [name for name in study.swept if name not in repeated]
    plots = [_against(study, rows, name, short[name]) for name in names]
    return [plot for plot in plots if plot is not None]


def _against(study: Study, rows: Sequence[ComparedTrial], name: str, short: str) -> Plot | None:
    """The metric against one override, a line for each setting of the others; None below two levels."""
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
        [_cloud(study.scale, table), _means(study.scale, table, numeric)]
        if len(groups) > LINES
        else [
            _line(
                study.scale,
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
    fp32 = study.scale.factor * study.finished[0].number_of(f"{study.primary}_fp32")
    ticks = {"tickmode": "array", "tickvals": list(levels.values()), "ticktext": list(levels)}
    return Plot(
        id=f"axis-{study.swept.index(name)}",
        title=f"Against {short}",
        caption=caption,
        traces=traces,
        data=table.drop(columns="place"),
        layout={
            "xaxis": axis(name, range=[places[0] - 0.5 * gap, places[-1] + 0.5 * gap], **ticks),
            "yaxis": axis(study.scale.axis, type=study.scale.spacing),
            **level_line(fp32, "FP32", study.scale.spacing),
        },
    )


def _crossed(study: Study, rows: Sequence[ComparedTrial], name: str) -> pd.DataFrame:
    """The finished trials that set an override and have a sibling that differs only in it and in seeds."""
    shown = [row for row in rows if name in row.trial.settings and math.isfinite(row.value)]
    repeated = set(seed_overrides(study))
    others = [other for other in study.swept if other != name and other not in repeated]
    varying = [other for other in others if len({row.trial.settings.get(other) for row in shown}) > 1]
    short = short_names(varying)
    table = pd.DataFrame(
        {
            "trial": [row.trial.name for row in shown],
            name: [row.trial.settings[name] for row in shown],
            "score": [row.scale.factor * row.value for row in shown],
            "low": [row.scale.factor * row.low for row in shown],
            "high": [row.scale.factor * row.high for row in shown],
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


def _hover(scale: Scale) -> str:
    """What a point says of itself: its trial, its score and the interval."""
    return f"<b>%{{text}}</b><br>%{{y:.2f}}{scale.unit} (%{{customdata[0]:.2f}} to %{{customdata[1]:.2f}})"


def _line(scale: Scale, table: pd.DataFrame, label: str, index: int, dodge: float, joined: bool) -> Trace:
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
        "hovertemplate": f"{_hover(scale)}<extra></extra>",
        "line": {"color": COLOURS[index % 6], "width": 1.5, "dash": ("solid", "dash")[index // 6]},
        "marker": {"color": COLOURS[index % 6], "symbol": index, "size": 8},
    }


def _cloud(scale: Scale, table: pd.DataFrame) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "trials",
        "x": plain(table["place"]),
        "y": plain(table["score"]),
        "text": list(table["trial"]),
        "hovertemplate": f"{_hover(scale)}<extra></extra>",
        "customdata": [plain(row) for row in table[["low", "high"]].to_numpy(object)],
        "marker": {"color": COLOURS[5], "size": 7, "opacity": 0.6},
    }


def _means(scale: Scale, table: pd.DataFrame, joined: bool) -> Trace:
    means = table.groupby("place")["score"].agg(["mean", "count"])
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": "mean",
        "x": plain(means.index),
        "y": plain(means["mean"]),
        "customdata": plain(means["count"]),
        "hovertemplate": f"mean of %{{customdata}}: %{{y:.2f}}{scale.unit}<extra></extra>",
        "line": {"color": COLOURS[1], "width": 2},
        "marker": {"color": COLOURS[1], "size": 9, "symbol": "diamond"},
    }
