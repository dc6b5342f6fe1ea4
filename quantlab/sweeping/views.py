"""The plot that fits a sweep, and the numbers behind it. A sweep's file names its views."""

import pathlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from quantlab.config.checks import above, fitting, freeze, one_of
from quantlab.results import plots
from quantlab.results.table import Results, setting, short_names, write_texts
from quantlab.sweeping.cube import cube_of
from quantlab.sweeping.factorial import factorial_of
from quantlab.sweeping.quoting import in_hydra

PANELS = 3  # pairs of factors that the figure of interactions shows
Settings = (
    Mapping[str, str] | tuple[tuple[str, str], ...]
)  # a mapping in YAML; pairs once built, to be hashable


class View(ABC):
    """One way to look at a finished sweep."""

    compares_rows: ClassVar[bool] = False  # whether it needs the answers of all trials to the same rows

    @abstractmethod
    def draw(self, results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
        """Writes figures and tables; returns the files. Raises ValueError where the sweep does not fit the
        view."""


@dataclass(frozen=True, kw_only=True)
class Curve(View):
    """The primary metric against one swept override, a line for each combination of the others that vary."""

    x: str

    def draw(self, results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
        one_of("x", self.x, results.swept)
        rows = results.where(results.table[self.x] != "")
        others = [name for name in rows.swept if name != self.x and rows.table[name].nunique() > 1]
        percent = rows.shown().assign(x=rows.table[self.x])
        labels = [_label(short_names(others), row) or results.primary for _, row in rows.table.iterrows()]
        lines = {str(label): line for label, line in percent.groupby(np.array(labels), sort=False)}
        figure = plots.curve_plot(lines, percent["fp32"].dropna().unique(), self.x, results.scale)
        return [plots.save_figure(figure, results.title, folder / f"curve_{fitting(self.x)}.png")]


@dataclass(frozen=True, kw_only=True)
class Dots(View):
    """The primary metric of every row, in the table's order."""

    def draw(self, results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
        figure = plots.dots_plot(list(results.table["name"]), results.shown(), results.scale)
        return [plots.save_figure(figure, results.title, folder / "dots.png")]


@dataclass(frozen=True, kw_only=True)
class Effects(View):
    """Main effects and two-way interactions of factors all of whose levels a block combines, all equally
    often."""

    block: str
    factors: tuple[str, ...]

    compares_rows = True

    def __post_init__(self) -> None:
        freeze(self)
        if (
            not isinstance(self.factors, tuple)
            or not self.factors
            or len(set(self.factors)) < len(self.factors)
        ):
            raise ValueError(f"factors must be a list of distinct overrides, got {self.factors!r}")

    def draw(self, results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
        factorial = factorial_of(results.block(self.block), self.factors)
        levels, pairs = factorial.main_effects(), factorial.interactions()
        tables = {
            "main_effects.csv": results.scale.named(levels).to_csv(index=False),
            "interactions.csv": results.scale.named(pairs).to_csv(index=False),
            "main_effects.md": factorial.report(),
        }
        figures = {"main_effects.png": plots.main_effects_plot(levels, results.scale)}
        if len(pairs):
            cells = [factorial.cells(a, b) for a, b in zip(pairs["factor_a"], pairs["factor_b"], strict=True)]
            panels = zip(cells[:PANELS], pairs["variance_share"], strict=False)
            figures["interactions.png"] = plots.interactions_plot(list(panels), results.scale)
        drawn = [plots.save_figure(figure, results.title, folder / name) for name, figure in figures.items()]
        return [*write_texts(folder, tables), *drawn]


@dataclass(frozen=True, kw_only=True)
class Path(View):
    """Which changes lead from one setting to another, in a block that has every mixture of the two.

    ``start`` and ``end`` give the same overrides a value each. Where the two agree, they pick trials of the
    block.
    """

    block: str
    start: Settings
    end: Settings
    max_drop: float = 0.5  # points, or % of perplexity, that the end of the shortest path may lose

    compares_rows = True

    def __post_init__(self) -> None:
        above("max_drop", self.max_drop, 0)
        for name in ("start", "end"):
            object.__setattr__(self, name, _pairs(name, getattr(self, name)))
        start, end = dict(self.start), dict(self.end)
        if start.keys() != end.keys() or start == end:
            raise ValueError(
                f"start and end must set the same overrides, not all alike; got {start} and {end}"
            )

    def draw(self, results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
        cube = cube_of(results.block(self.block), dict(self.start), dict(self.end), self.max_drop)
        shortest, full, order_free = cube.shortest(), cube.full(), cube.shapley()
        steps = pd.concat([shortest, full, order_free])
        figure = plots.path_plot(full, order_free, set(shortest["change"]), results.scale)
        tables = {"path.csv": results.scale.named(steps).to_csv(index=False), "path.md": cube.report()}
        return [*write_texts(folder, tables), plots.save_figure(figure, results.title, folder / "path.png")]


def _label(names: Mapping[str, str], row: pd.Series) -> str:
    return ", ".join(setting(short, row[name]) for name, short in names.items() if row[name])


def _pairs(name: str, settings: Any) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((str(key), in_hydra(value)) for key, value in dict(settings).items())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must map overrides to values, got {settings!r}") from error
