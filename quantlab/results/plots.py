"""Figures of sweeps. Scores and their changes have the units of their scale, intervals are of 95 %."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quantlab.cli.console import shortened
from quantlab.results.scale import Scale
from quantlab.results.table import ordered, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; without yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = [(COLOURS[i % 7], "os^Dv<>P"[i % 8], ("-", "--", ":")[i // 7 % 3]) for i in range(56)]
PALE = "#9DC3DD"
REFERENCE: dict[str, Any] = {"color": "gray", "linestyle": "--", "linewidth": 1, "zorder": 0}
LABEL = 60  # characters of a setting or a name that a figure shows; the tables have all of it
# Numbers that lie further apart than this many times the closest two, or the least, are spaced evenly.
SPREAD = 50.0


def _figure(width: float, height: float) -> Figure:
    """An empty figure, inches. matplotlib is imported here: most commands draw nothing."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curve_plot(lines: Mapping[str, pd.DataFrame], fp32: Iterable[float], xlabel: str, scale: Scale) -> Figure:
    """For each label a line of ``value``, with ``low`` to ``high``, against the texts ``x``.

    A row without a value failed, and is marked at the foot.
    """
    columns = max(1, 100 // (min(LABEL, max(map(len, lines))) + 8))
    figure = _figure(7.5, 4 + 0.2 * math.ceil((len(lines) + 1) / columns))
    axes = figure.subplots()
    ticks = axis_positions([x for line in lines.values() for x in line["x"]])
    foot = axes.get_xaxis_transform()
    dodge = 0.4 / len(lines) * np.diff(list(ticks.values())).min(initial=1.0)
    for index, ((label, line), style) in enumerate(zip(lines.items(), cycle(STYLES), strict=False)):
        x = (line["x"].map(ticks) + dodge * (index - (len(lines) - 1) / 2)).sort_values()
        line = line.loc[x.index]
        _line(axes, x, (line["value"], line["low"], line["high"]), style, label_text(label))
        for place in x[line["value"].isna()]:
            axes.text(
                place, 0.02, "failed", color=style[0], fontsize=8, ha="center", rotation=90, transform=foot
            )
    for number, value in enumerate(fp32):
        axes.axhline(value, label="_" if number else "FP32", **REFERENCE)
    _ticks(axes, ticks.values(), list(ticks), 6.5)
    axes.set(xlabel=xlabel)
    _score_axis(axes, "y", scale)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def dots_plot(names: Sequence[str], percent: pd.DataFrame, scale: Scale) -> Figure:
    """For each name, from the top down, a dot at ``value`` with ``low`` to ``high``, or the word "failed".

    One checkpoint's FP32 is a line; where the rows have several checkpoints, each row has a mark of its own.
    """
    height, width = min(1.2 + 0.19 * len(names), 18.0), 4 + 0.065 * min(LABEL, max(map(len, names)))
    figure = _figure(width, height)
    axes = figure.subplots()
    rows = np.arange(len(names))
    axes.hlines(rows, percent["low"], percent["high"], color=COLOURS[0], linewidth=1.2)
    axes.plot(percent["value"], rows, "o", color=COLOURS[0], markersize=4)
    for row in rows[percent["value"].isna()]:
        axes.text(
            0.01,
            row,
            "failed",
            color=COLOURS[1],
            fontsize=8,
            va="center",
            transform=axes.get_yaxis_transform(),
        )
    references = percent["fp32"]
    if references.nunique() == 1:
        axes.axvline(references.max(), **REFERENCE)
        top = axes.get_xaxis_transform()
        axes.text(
            references.max(), 1, "FP32", color="gray", fontsize=8, ha="center", va="bottom", transform=top
        )
    elif references.nunique():
        axes.plot(references, rows, "|", color="gray", markersize=9, label="FP32 of the row's checkpoint")
        figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    axes.set_yticks(rows, labels=list(map(label_text, names)), fontsize=min(8.0, 60 * height / len(names)))
    axes.set(ylim=(len(names) - 0.4, -0.6))
    _score_axis(axes, "x", scale)
    axes.grid(axis="y", color="0.93")
    return figure


def main_effects_plot(levels: pd.DataFrame, scale: Scale) -> Figure:
    """A panel a factor of a table of ``Factorial.main_effects``; the dashed line is the mean of all
    trials."""
    factors = {str(factor): group for factor, group in levels.groupby("factor", sort=False)}
    short, widths = (
        short_names(factors),
        [min(max(1.4, _width(list(group["level"]))), 5) for group in factors.values()],
    )
    figure = _figure(1 + sum(widths), 3.2)
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, width, (factor, group) in zip(panels, widths, factors.items(), strict=True):
        mean = scale.before(group["mean"].to_numpy(), group["effect"].to_numpy())
        low, high = (scale.after(mean, group[f"effect_ci95_{end}"].to_numpy()) for end in ("low", "high"))
        axes.axhline(mean[0], **REFERENCE)
        _line(axes, range(len(group)), (group["mean"], low, high), STYLES[0])
        _ticks(axes, range(len(group)), list(group["level"]), width)
        axes.set_title(f"{short[factor]}\n{_share(group['variance_share'].iloc[0])}")
        axes.margins(x=0.5 / len(group))
    _score_axis(panels[0], "y", scale)
    return figure


def interactions_plot(pairs: Sequence[tuple[pd.DataFrame, float]], scale: Scale) -> Figure:
    """A panel a pair of factors, with its share of the variance: one's levels along x, a line a level of the
    other."""
    figure = _figure(3.2 * len(pairs) + 0.8, 3.6)
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, (cells, share) in zip(panels, pairs, strict=True):
        along = cells if len(cells) >= len(cells.columns) else cells.T
        for (level, values), (colour, marker, dash) in zip(along.items(), cycle(STYLES), strict=False):
            axes.plot(
                values.to_numpy(), color=colour, marker=marker, linestyle=dash, markersize=5, label=level
            )
        _ticks(axes, range(len(along)), list(along.index), 3)
        axes.set(xlabel=along.index.name, title=f"{along.index.name} × {along.columns.name}\n{_share(share)}")
        axes.margins(x=0.15)
        axes.legend(title=along.columns.name, frameon=False, fontsize=8, title_fontsize=8)
    _score_axis(panels[0], "y", scale)
    return figure


def path_plot(full: pd.DataFrame, credit: pd.DataFrame, marked: set[str], scale: Scale) -> Figure:
    """A waterfall of the full path, and beside it each change's order-free gain, as tables of ``Cube`` give
    them.

    The ``marked`` changes are darker.
    """
    figure = _figure(9, 1.4 + 0.34 * (len(full) + 2))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows, gains = np.arange(1, len(full) + 1), full["gain"].to_numpy()
    start = float(scale.before(full["reached"].iloc[0], gains[0]))
    reached = np.r_[start, full["reached"]]
    colours = [COLOURS[0] if change in marked else PALE for change in full["change"]]
    left.use_sticky_edges = False  # bars would hold the axis to their ends, where the texts are
    left.barh(rows, np.diff(reached), left=reached[:-1], color=colours, height=0.6)
    left.vlines(reached, np.r_[0, rows], np.r_[rows, len(full) + 1], color="gray", linewidth=0.8)
    left.plot(reached[[0, -1]], [0, len(full) + 1], "o", color="black", markersize=5)
    percent = "" if scale.percent else " %"
    changes = [f"{gain:+z.1f}{percent}" for gain in gains]
    texts = [f"{start:.1f}{scale.unit}", *changes, f"{reached[-1]:.1f}{scale.unit}"]
    ends = [start, *np.maximum(reached[1:], reached[:-1]), reached[-1]]
    for row, (text, x) in enumerate(zip(texts, ends, strict=True)):
        left.annotate(text, (x, row), (5, 0), textcoords="offset points", va="center", fontsize=8)
    left.set_yticks(range(len(full) + 2), labels=["start", *map(label_text, full["change"]), "end"])
    _score_axis(left, "x", scale)
    left.set(
        ylim=(len(full) + 1.6, -0.6),
        title="one change after another; dark: the shortest path",
    )
    left.margins(x=0.14)
    order_free = credit.set_index("change").loc[full["change"]]
    right.barh(rows, order_free["gain"], color=colours, height=0.6)
    low, high = (order_free[f"gain_ci95_{end}"] for end in ("low", "high"))
    right.hlines(rows, low, high, color="black", linewidth=1)
    right.axvline(0, color="gray", linewidth=0.8)
    right.set(xlabel=scale.effect_unit, title="averaged over all orders")
    return figure


def save_figure(figure: Figure, title: str, file: Path) -> Path:
    """Writes a figure as PNG, its title wrapped to its width. Returns the file."""
    figure.suptitle(fill(title, int(12 * figure.get_figwidth())).replace("$", r"\$"), fontsize=10)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9)
    figure.savefig(file, dpi=150)
    return file


def axis_positions(values: Iterable[str]) -> dict[str, float]:
    """The place of each distinct value on an axis.

    Numbers stand at themselves, percentiles p at -log10(100 - p), so that 99.9 and 99.99 are apart, and 100
    one beyond the others. Values stand one apart where one is not a number or two would lie on top of each
    other.
    """
    levels = ordered(values)
    numbers = pd.to_numeric(pd.Series(levels), errors="coerce").to_numpy(float)
    if ((numbers > 50) & (numbers <= 100)).all() and ((numbers > 99) & (numbers < 100)).any():
        below = numbers[numbers < 100]  # percentiles: 99, 99.9 and 99.99 stand one apart
        places = np.round(-np.log10(100 - below), 6)
        numbers = np.append(places, [places.max() + 1] * (len(numbers) - len(below)))
    elif not _spaced_by_number(numbers):
        numbers = np.arange(len(levels), dtype=float)
    return dict(zip(levels, numbers.tolist(), strict=True))


def _spaced_by_number(numbers: np.ndarray) -> bool:
    """Whether ascending numbers make a readable axis: no NaN, and no two far closer than all of them."""
    gap = np.diff(numbers).min(initial=np.inf)
    return bool(np.ptp(numbers) <= SPREAD * gap and not 0 < SPREAD * numbers[0] < numbers[-1])


def label_text(text: str) -> str:
    """A text as a label: long ones are cut, dollar signs escaped for matplotlib."""
    return shortened(text, LABEL).replace("$", r"\$")


def _width(labels: Sequence[str]) -> float:
    """The inches that tick labels need side by side."""
    return 0.085 * len(labels) * (max(map(len, labels)) + 1.5)


def _score_axis(axes: Axes, along: str, scale: Scale) -> None:
    """Names and spaces an axis, ``x`` or ``y``, of scores."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{along}label": scale.axis, f"{along}scale": scale.spacing})
    if scale.spacing == "log":
        axis = getattr(axes, f"{along}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter(NullFormatter())


def _ticks(axes: Axes, places: Iterable[float], labels: Sequence[str], width: float) -> None:
    """Labels the ticks of an axis ``width`` inches wide; labels that would not fit are slanted."""
    labels = list(map(label_text, labels))
    slant: dict[str, Any] = {"rotation": 30, "ha": "right"} if _width(labels) > width else {}
    axes.set_xticks(list(places), labels=labels, fontsize=9, **slant)


def _line(
    axes: Axes, x: Any, line: tuple[Any, Any, Any], style: tuple[str, str, str], label: str = "_"
) -> None:
    colour, marker, dash = style
    value, low, high = line
    axes.vlines(x, low, high, color=colour, linewidth=1)
    axes.plot(x, value, color=colour, marker=marker, linestyle=dash, markersize=5, label=label)


def _share(share: float) -> str:
    return "nothing varies" if math.isnan(share) else f"{100 * share:.1f} % of variance"
