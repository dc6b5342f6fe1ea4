"""Plots of a study's scores against what was swept. The page sets the colours of its theme."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from quantlab.reporting.comparing import ComparedTrial, seed_overrides
from quantlab.reporting.shapes import Plot, Trace, axis, bars, level_line, plain, score_hover
from quantlab.results.plots import COLOURS, axis_positions
from quantlab.results.reading import Study
from quantlab.results.scale import Scale
from quantlab.results.table import short_names

LINES = 8  # in one plot, at most; more are drawn as dots and their mean


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
        "hovertemplate": f"{score_hover(scale)}<extra></extra>",
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
        "hovertemplate": f"{score_hover(scale)}<extra></extra>",
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
