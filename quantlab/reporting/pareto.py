"""The plot of a study's scores against speed and size, and which trials no other beats."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from quantlab.reporting.comparing import ComparedTrial
from quantlab.reporting.recommendation import SAME_SIZE
from quantlab.reporting.shapes import Plot, Trace, axis, bars, plain, score_hover
from quantlab.results.plots import COLOURS
from quantlab.results.reading import Study
from quantlab.results.scale import Scale
from quantlab.results.table import SPEED


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
    kept: list[int] = []
    for index in np.lexsort(costs.T[::-1]):  # what beats a row comes before it
        if counted[index]:
            before = costs[kept]
            no_worse, better = (before <= costs[index]).all(axis=1), (before < costs[index]).any(axis=1)
            if not (no_worse & better).any():
                kept.append(int(index))
    return np.isin(np.arange(len(costs)), kept)


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
        "hovertemplate": f"{score_hover(scale)}<br>{speed}%{{customdata[2]:.1f}} MB<extra></extra>",
    }
