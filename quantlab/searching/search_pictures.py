"""Pictures of a search: the answer by layer and role, its cost over time, and the scores."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from quantlab.methods.bits import Precision
from quantlab.results.plots import COLOURS
from quantlab.searching.history import History
from quantlab.searching.site_scores import SCORES, Scores
from quantlab.searching.space import SLOTS, Space

SHADES = ("#DCE9F5", "#56B4E9", "#0072B2", "#D55E00")  # from narrow to wide
NAMED = 5  # variables with the highest scores


def best_cost_over_time(history: History, whole: int) -> tuple[list[float], list[float]]:
    """After each candidate: evaluations spent so far (rows / ``whole``), and the least feasible cost, NaN
    before there is one."""
    spent, best, rows, least = [], [], history.setup_rows, math.inf
    for one in history.evaluated:
        rows += one.measured.rows if one.origin != "reference" else 0
        if one.feasible and one.complete:
            least = min(least, one.cost)
        spent.append(rows / whole)
        best.append(least if math.isfinite(least) else math.nan)
    return spent, best


def draw_progress(history: History, whole: int, unit: str) -> Figure:
    """The best cost against the evaluations spent."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    spent, best = best_cost_over_time(history, whole)
    axes.step(spent, best, where="post", color=COLOURS[0])
    axes.set(xlabel="evaluations of the whole set", ylabel=f"best cost, {unit}")
    return figure


def draw_precisions(space: Space, precisions: Mapping[str, Precision], title: str) -> Figure:
    """A map of precisions by site: layers from top to bottom, roles from left to right."""
    cells = {site.name: site.name.split(".", 1) for site in space.sites}
    scopes = list(dict.fromkeys(scope for scope, _ in cells.values()))
    roles = list(
        dict.fromkeys(role for _, role in sorted(cells.values(), key=lambda cell: not cell[0].isdigit()))
    )
    grid = np.full((len(scopes), len(roles)), np.nan)
    for name, (scope, role) in cells.items():
        grid[scopes.index(scope), roles.index(role)] = space.choices.index(precisions[name])
    shades = [SHADES[0], *SHADES[len(SHADES) - len(space.choices) + 1 :]]
    figure = Figure(figsize=(2 + 0.5 * len(roles), 1.8 + 0.35 * len(scopes)), layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(
        grid, cmap=ListedColormap(shades), vmin=0, vmax=len(shades) - 1, edgecolors="white", linewidth=2
    )
    axes.set_xticks(np.arange(len(roles)) + 0.5, roles, rotation=60, ha="right")
    axes.set_yticks(np.arange(len(scopes)) + 0.5, scopes)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=8, wrap=True)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    patches = [
        Patch(color=shade, label=str(choice)) for shade, choice in zip(shades, space.choices, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=8)
    return figure


def draw_scores(scores: Scores) -> Figure:
    """Each score against the measured loss, one dot a variable; without measured losses, against its rank."""
    figure = Figure(figsize=(4 * len(SCORES), 3.8), layout="constrained")
    measured = scores.measured
    names = [name for name in (SLOTS, "variable") if name in scores.table]
    for axes, score in zip(figure.subplots(1, len(SCORES)), SCORES, strict=True):
        values = scores.table[score].sort_values(ascending=False)
        if measured:
            axes.plot(values, scores.table[measured].loc[values.index], "o", markersize=4, color=COLOURS[0])
            axes.set(xlabel=score, ylabel=measured.replace("_", " "))
        else:
            axes.plot(np.arange(len(values)), values, "o", markersize=4, color=COLOURS[0])
            axes.set(xlabel="rank", ylabel=score)
        if score != "noise_db" and (values > 0).all():
            (axes.set_xscale if measured else axes.set_yscale)("log")
        for index in values.index[:NAMED]:
            x = values[index] if measured else list(values.index).index(index)
            y = scores.table[measured][index] if measured else values[index]
            axes.annotate(
                " ".join(scores.table.loc[index, names]),
                (x, y),
                (-5, 0),
                textcoords="offset points",
                ha="right",
                fontsize=7,
            )
    return figure
