"""The traces, axes and lines that the report's plots are made of, as plotly JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from quantlab.results.plots import COLOURS
from quantlab.results.scale import Scale

DASHES = ("solid", "dash", "dot", "dashdot")
Trace = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plot:
    """A plot with its caption, and the numbers behind it as ``data``."""

    id: str
    title: str
    caption: str
    traces: Sequence[Trace]
    data: pd.DataFrame
    layout: Mapping[str, Any] = field(default_factory=dict)
    height: int = 420
    labelled: bool = False  # whether the page writes the points' names beside them
    wide: bool = False


def axis(title: str, **more: Any) -> dict[str, Any]:
    """A plotly axis with a title."""
    return {"title": {"text": title}, **more}


def level_line(value: float, label: str = "", spacing: str = "linear") -> dict[str, Any]:
    """The layout of a dashed line across a plot at a value; empty for NaN.

    Plotly places lines by their value on every axis, but texts by the logarithm on a ``log`` one.
    """
    if not math.isfinite(value):
        return {}
    shape = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "layer": "below",
        "line": {"dash": "dash", "width": 1, "color": "#888888"},
    }
    text = {
        "xref": "paper",
        "x": 1,
        "y": math.log10(value) if spacing == "log" else value,
        "text": label,
        "showarrow": False,
        "xanchor": "right",
        "yanchor": "bottom",
        "font": {"color": "#888888"},
    }
    return {"shapes": [shape], "annotations": [text] if label else []}


def plain(values: Any) -> list[Any]:
    """A column as a list for JSON; numbers that are not finite become None."""
    items = np.asarray(values, dtype=object).tolist()
    return [None if isinstance(item, float) and not math.isfinite(item) else item for item in items]


def bars(low: Any, high: Any, value: Any) -> dict[str, Any]:
    """Error bars from the ends of an interval; of length 0 where the ends are NaN."""
    up = [float(h - v) if math.isfinite(h) else 0.0 for h, v in zip(high, value, strict=True)]
    down = [float(v - w) if math.isfinite(w) else 0.0 for w, v in zip(low, value, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3}


def line(x: Any, y: Any, name: str, index: int, hover: str = "%{y:.4g}", **more: Any) -> Trace:
    """A line with markers; ``index`` chooses colour, dash and marker."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": plain(x),
        "y": plain(y),
        "line": {"color": COLOURS[index % 6], "width": 1.5, "dash": DASHES[index % 4]},
        "marker": {"color": COLOURS[index % 6], "symbol": index, "size": 7},
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{x}}: {hover}<extra></extra>",
        **more,
    }


def bar(names: Any, values: Any, hover: str, text: Any = None) -> Trace:
    """Horizontal bars, the first on top."""
    return {
        "type": "bar",
        "orientation": "h",
        "y": plain(names),
        "x": plain(values),
        "marker": {"color": COLOURS[0]},
        "customdata": plain(text) if text is not None else None,
        "hovertemplate": f"<b>%{{y}}</b><br>{hover}<extra></extra>",
    }


def heat(table: pd.DataFrame, title: str, hover: str, symmetric: bool = False) -> Trace:
    """A heat map of a table; ``symmetric`` puts zero in the middle of the colours."""
    largest = float(np.nanmax(np.abs(table.to_numpy(float))))
    scale = {"colorscale": "RdBu", "reversescale": True, "zmin": -largest, "zmax": largest}
    return {
        "type": "heatmap",
        "x": plain(table.columns),
        "y": plain(table.index),
        "z": [plain(row) for row in table.to_numpy(float)],
        "colorbar": {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0},
        "hovertemplate": f"{hover}<extra></extra>",
        **(scale if symmetric else {"colorscale": "Cividis"}),
    }


def score_hover(scale: Scale) -> str:
    """What a point says of itself: its trial, its score and the interval."""
    return f"<b>%{{text}}</b><br>%{{y:.2f}}{scale.unit} (%{{customdata[0]:.2f}} to %{{customdata[1]:.2f}})"
