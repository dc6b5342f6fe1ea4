"""Figures of sweeps. Scores are in percent, their differences in points, intervals 95 %."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlab.sweeping.results import ordered, short_names

# Okabe and Ito's colours, which colour-blind readers tell apart; without yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = [(COLOURS[i % 7], "os^Dv<>P"[i % 8], ("-", "--", ":")[i // 7 % 3]) for i in range(56)]
PALE = "#9DC3DD"
SPREAD = 50.0  # numbers that lie further apart than this many times the closest two, or the least, are spaced evenly


def curve(lines: Mapping[str, pd.DataFrame], fp32: Iterable[float], xlabel: str, ylabel: str) -> Figure:
    """For each label a line of ``value``, with ``low`` to ``high``, against the texts ``x``.

    A row without a value failed, and is marked at the foot.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    ticks = positions([x for line in lines.values() for x in line["x"]])
    dodge = 0.4 / len(lines) * np.diff(list(ticks.values())).min(initial=1.0)
    for index, ((label, line), style) in enumerate(zip(lines.items(), cycle(STYLES), strict=False)):
        x = (line["x"].map(ticks) + dodge * (index - (len(lines) - 1) / 2)).sort_values()
        line = line.loc[x.index]
        _line(axes, x, (line["value"], line["low"], line["high"]), style, label)
        failed = x[line["value"].isna()]
        axes.plot(failed, 0 * failed, "x", color=style[0], transform=axes.get_xaxis_transform(), clip_on=False)
    _fp32(axes.axhline, fp32)
    axes.set_xticks(list(ticks.values()), labels=list(ticks))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def dots(names: Sequence[str], percent: pd.DataFrame, xlabel: str) -> Figure:
    """For each name, from the top down, a dot at ``value`` with ``low`` to ``high``, or the word "failed"."""
    height = min(1.2 + 0.19 * len(names), 18.0)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(names))
    axes.hlines(rows, percent["low"], percent["high"], color=COLOURS[0], linewidth=1.2)
    axes.plot(percent["value"], rows, "o", color=COLOURS[0], markersize=4)
    for row in rows[percent["value"].isna()]:
        axes.text(0.01, row, "failed", color=COLOURS[1], fontsize=8, va="center", transform=axes.get_yaxis_transform())
    _fp32(axes.axvline, percent["fp32"].dropna().unique())
    axes.set_yticks(rows, labels=list(names), fontsize=min(8.0, 60 * height / len(names)))
    axes.set(xlabel=xlabel, ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="y", color="0.93")
    axes.legend(frameon=False, fontsize=8)
    return figure


def main_effects(levels: pd.DataFrame, ylabel: str) -> Figure:
    """A panel a factor of a table of ``Factorial.main_effects``; the dashed line is the mean of all trials."""
    factors = {str(factor): group for factor, group in levels.groupby("factor", sort=False)}
    short, widths = short_names(factors), [len(group) + 0.6 for group in factors.values()]
    figure = Figure(figsize=(max(1.2 + 0.75 * sum(widths), 4), 3.4), layout="constrained")
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (factor, group) in zip(panels, factors.items(), strict=True):
        mean = group["mean_percent"] - group["effect_points"]
        ends = mean + group["effect_points_ci95_low"], mean + group["effect_points_ci95_high"]
        axes.axhline(mean.iloc[0], color="gray", linestyle="--", linewidth=1)
        _line(axes, range(len(group)), (group["mean_percent"], *ends), STYLES[0])
        axes.set_xticks(range(len(group)), labels=group["level"])
        axes.set_title(f"{short[factor]}\n{group['variance_share'].iloc[0]:.1%} of variance")
        axes.margins(x=0.5 / len(group))
    panels[0].set_ylabel(ylabel)
    return figure


def interactions(pairs: Sequence[tuple[pd.DataFrame, float]], ylabel: str) -> Figure:
    """A panel a pair of factors, with its share of the variance: one's levels along x, a line a level of the other."""
    figure = Figure(figsize=(3.2 * len(pairs) + 0.8, 3.6), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, (cells, share) in zip(panels, pairs, strict=True):
        along = cells if len(cells) >= len(cells.columns) else cells.T
        for (level, values), (colour, marker, dash) in zip(along.items(), cycle(STYLES), strict=False):
            axes.plot(values.to_numpy(), color=colour, marker=marker, linestyle=dash, markersize=5, label=level)
        axes.set_xticks(range(len(along)), labels=along.index)
        axes.set(xlabel=along.index.name, title=f"{share:.1%} of variance")
        axes.margins(x=0.15)
        axes.legend(title=along.columns.name, frameon=False, fontsize=8, title_fontsize=8)
    panels[0].set_ylabel(ylabel)
    return figure


def path(full: pd.DataFrame, credit: pd.DataFrame, marked: set[str], xlabel: str) -> Figure:
    """A waterfall of the full path, and beside it each change's order-free gain, as tables of ``Cube`` give them.

    The ``marked`` changes are darker.
    """
    figure = Figure(figsize=(9, 1.4 + 0.34 * (len(full) + 2)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows, gains = np.arange(1, len(full) + 1), full["gain_points"].to_numpy()
    start = full["reached_percent"].iloc[0] - gains[0]
    reached = np.r_[start, full["reached_percent"]]
    colours = [COLOURS[0] if change in marked else PALE for change in full["change"]]
    left.barh(rows, gains, left=reached[:-1], color=colours, height=0.6)
    left.vlines(reached, np.r_[0, rows], np.r_[rows, len(full) + 1], color="gray", linewidth=0.8)
    left.plot(reached[[0, -1]], [0, len(full) + 1], "o", color="black", markersize=5)
    texts = [f"{start:.1f} %", *map("{:+z.1f}".format, gains), f"{reached[-1]:.1f} %"]
    ends = [start, *np.maximum(reached[1:], reached[:-1]), reached[-1]]
    for row, (text, x) in enumerate(zip(texts, ends, strict=True)):
        left.annotate(text, (x, row), (5, 0), textcoords="offset points", va="center", fontsize=8)
    left.set_yticks(range(len(full) + 2), labels=["start", *full["change"], "end"])
    left.set(xlabel=xlabel, ylim=(len(full) + 1.6, -0.6), title="one change after another")
    left.margins(x=0.14)
    order_free = credit.set_index("change").loc[full["change"]]
    right.barh(rows, order_free["gain_points"], color=colours, height=0.6)
    low, high = (order_free[f"gain_points_ci95_{end}"] for end in ("low", "high"))
    right.hlines(rows, low, high, color="black", linewidth=1)
    right.axvline(0, color="gray", linewidth=0.8)
    right.set(xlabel="points", title="averaged over all orders")
    return figure


def save(figure: Figure, title: str, file: Path) -> Path:
    """Writes a PNG with a title above, wrapped to the figure's width; returns the file."""
    figure.suptitle(fill(title, int(13 * figure.get_figwidth())), fontsize=10)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9)
    figure.savefig(file, dpi=150)
    return file


def positions(values: Iterable[str]) -> dict[str, float]:
    """Where each distinct value stands on an axis: at its number, or one apart where that would make a bad axis."""
    levels = ordered(values)
    numbers = pd.to_numeric(pd.Series(levels), errors="coerce").to_numpy(float)
    gap = np.diff(numbers).min(initial=np.inf)
    even = np.ptp(numbers) <= SPREAD * gap and not 0 < SPREAD * numbers[0] < numbers[-1]  # NaN: not a number, not even
    return dict(zip(levels, numbers.tolist() if even else map(float, range(len(levels))), strict=True))


def _line(axes: Axes, x: Any, line: tuple[Any, Any, Any], style: tuple[str, str, str], label: str = "_") -> None:
    colour, marker, dash = style
    value, low, high = line
    axes.vlines(x, low, high, color=colour, linewidth=1)
    axes.plot(x, value, color=colour, marker=marker, linestyle=dash, markersize=5, label=label)


def _fp32(draw: Callable[..., Any], values: Iterable[float]) -> None:
    for index, value in enumerate(values):
        draw(value, color="gray", linestyle="--", linewidth=1, zorder=0, label="_" if index else "FP32")
