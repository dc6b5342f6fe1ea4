"""What a search has found so far, on disk after every candidate: the best plan, the front, a method's YAML, a
map."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from quantlab.cli.catalogue import FOUND
from quantlab.methods.bits import Precision
from quantlab.network.sites import Site
from quantlab.results.plots import COLOURS
from quantlab.searching.costs import Cost
from quantlab.searching.history import Found, HeldOut, History
from quantlab.searching.scores import MEASURED, SCORES, Scores
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.space import Space
from quantlab.storage.files import write_whole
from quantlab.tasks.sampling import FEWEST
from quantlab.trial.result import plain_data

HAND_MADE = {
    "x, h, y": ("*.ffn.in", "*.ffn.out", "*.ffn.sum"),
    "x, h, y and attention's output": ("*.ffn.in", "*.ffn.out", "*.ffn.sum", "*.attn.out"),
    "all residual sums": ("*.attn.sum", "*.ffn.sum", "embed.sum"),
    "everything": ("*",),
}
SHADES = ("#DCE9F5", "#56B4E9", "#0072B2", "#D55E00")  # from narrow to wide


@dataclass(frozen=True, kw_only=True, eq=False)
class Reporter:
    """Writes a search's files."""

    config: SearchConfig
    space: Space
    cost: Cost
    sites: Sequence[Site]  # all of the model's
    total: int  # rows of the whole set
    choosing: int  # of these, the rows that candidates are judged on
    folder: Path

    def write(self, history: History) -> None:
        """All of it, each file whole."""
        write_whole(self.folder / "best.json", json.dumps(self.summary(history), indent=2))
        write_whole(self.folder / "candidates.csv", self._table(history.found).to_csv(index=False))
        write_whole(self.folder / "front.csv", self._table(history.front).to_csv(index=False))
        if answer := history.answer:
            text = self.method_yaml(answer, history)
            write_whole(self.folder / "method.yaml", text)
            FOUND.mkdir(parents=True, exist_ok=True)
            write_whole(FOUND / f"{self.config.search.name}.yaml", text)

    def draw(self, history: History) -> None:
        """The pictures: the best plan over layers and roles, and the best cost against what was spent."""
        if answer := history.answer:
            title = f"{self.config.search.name}: {self.line(answer)}"
            map_of(self.space, self.space.by_site(answer.chosen), title).savefig(
                self.folder / "map.png", dpi=150
            )
        self._progress(history).savefig(self.folder / "progress.png", dpi=150)

    def summary(self, history: History) -> dict[str, Any]:
        """The answer as plain data. ``held_out`` in it is of the rows that did not choose it, null before
        these are answered and where there are none."""
        answer, held_out = history.answer, self._held_out(history)
        sites = {} if answer is None else self.space.by_site(answer.chosen)
        return {
            "goal": self.goal(),
            "met": self.met(history),
            "answer": None
            if answer is None
            else self._row(answer) | {"held_out": held_out or None, "sites": sites},
            "candidates": len(history.found),
            "rows": history.rows,
            "evaluations": history.rows / self.total,
            "hand_made": self.hand_made(),
        }

    def met(self, history: History) -> bool:
        """Whether an answer is within the limit that is narrower than everything at its widest."""
        return history.best is not None and not history.decided_nothing

    def goal(self) -> str:
        """What is searched, in words."""
        search = self.config.search
        limit = f"at most {search.max_drop:g} points below {search.reference}"
        if search.mode == "cost":
            sure = " with 95 % confidence" if search.decide == "bound" else ""
            return f"least {self.cost.unit}, {limit}{sure}"
        if search.mode == "accuracy":
            return f"best accuracy within {search.max_cost:g} {self.cost.unit}"
        return f"the front of {self.cost.unit} and accuracy"

    def line(self, found: Found) -> str:
        """A candidate in one line, on the rows that choose."""
        return f"{found.cost:g} {self.cost.unit}, {self._accuracy(found)}"

    def honesty(self, history: History) -> str:
        """What the answer is on rows that did not choose it, or why that is not known."""
        measured = None if history.answer is None else history.measured.get(history.answer.number)
        if measured is None:
            if self.choosing < self.total:
                return "not measured yet on the rows that did not choose it"
            return (
                f"measured on the {self.total:,} rows that chose it, so better than it is on others: "
                f"evaluation.holdout={self.config.evaluation.holdout:g} leaves no {FEWEST} "
                f"rows on either side"
            )
        search = self.config.search
        drop = measured.upper95 if search.decide == "bound" else measured.drop
        beyond = f", beyond search.max_drop={search.max_drop:g}" if drop > search.max_drop else ""
        over = beyond if search.mode == "cost" else ""
        return f"on {measured.rows:,} rows that did not choose it: {self._accuracy(measured)}{over}"

    def _accuracy(self, one: Found | HeldOut) -> str:
        interval = "" if math.isnan(one.low) else f" (95 % interval {one.low:.2f} to {one.high:.2f})"
        better = ", which is better" if one.drop < 0 else ""
        return (
            f"{one.metric:.4f}, {one.drop:.2f} points below {self.config.search.reference}{better}{interval}"
        )

    def text(self, history: History, reason: str) -> list[str]:
        """The answer first, then the front, then what the hand-made sets cost, and where it all is."""
        lines = [self._first_line(history)]
        if history.answer:
            lines.append(f"  {self.honesty(history)}")
        lines += [f"  front: {self.line(one)}" for one in history.front]
        lines += [f"  hand-made {name}: {cost:g} {self.cost.unit}" for name, cost in self.hand_made().items()]
        spent = (
            f"{history.rows / self.total:.2f} evaluations of the whole set, {len(history.found)} candidates"
        )
        lines.append(f"{spent}; ended because {reason}")
        if history.answer:
            lines.append(f"run it: python -m quantlab.run method=found/{self.config.search.name} ...")
        return [*lines, str(self.folder)]

    def _first_line(self, history: History) -> str:
        if history.best and history.decided_nothing:
            tried = (
                f"the best of {len(history.found)} candidates"
                if len(history.found) > 1
                else "all that was tried"
            )
            return f"nothing was decided: everything at its widest is {tried}: {self.line(history.best)}"
        if history.best:
            return f"best: {self.line(history.best)}"
        if history.closest:
            widest = "; it is everything at its widest" if history.decided_nothing else ""
            return f"goal not met ({self.goal()}); the closest plan: {self.line(history.closest)}{widest}"
        return "no candidate was evaluated in full"

    def hand_made(self) -> dict[str, float]:
        """Costs of sets that people would choose, in the search's space; those whose sites it lacks are left
        out."""
        narrow, wide = self.space.choices[0], self.space.choices[-1]
        found = {}
        for name, patterns in HAND_MADE.items():
            of_sites = {site.name: wide if site.matches(patterns) else narrow for site in self.space.sites}
            if wide in of_sites.values():
                found[name] = self.cost.of(self.space, self.space.chosen(of_sites))
        operands = {site.name for site in self.sites if site.read_at}
        inside = {s.name: narrow if s.name in operands else wide for s in self.space.sites}
        if wide in inside.values() and narrow in inside.values():
            found["placement gemm (what enters no product)"] = self.cost.of(
                self.space, self.space.chosen(inside)
            )
        return found

    def method_yaml(self, found: Found, history: History) -> str:
        """A file of ``conf/method``."""
        method = plain_data(self.space.method(self.config.method, found.chosen))
        method["rules"] = [{"match": rule["match"], "bits": rule["bits"]} for rule in method["rules"]]
        nothing = (
            "# Nothing was decided: this is everything at its widest.\n" if history.decided_nothing else ""
        )
        met = "" if history.best else f"# The goal was not met: {self.goal()}. This is the closest plan.\n"
        heading = (
            f"# Found by the search {self.config.search.name}: {self.line(found)};\n# "
            f"{self.honesty(history)}.\n"
        )
        heading += nothing + met
        return heading + yaml.safe_dump(method, sort_keys=False)

    def metrics(self, history: History) -> dict[str, float]:
        """What MLflow is told of the search so far."""
        answer = history.answer
        spent = {"evaluations": history.rows / self.total, "candidates": float(len(history.found))}
        if answer is None:
            return spent
        numbers = {"best_cost": answer.cost, "best_metric": answer.metric, "best_drop_points": answer.drop}
        held_out = {
            f"held_out_{name}": value for name, value in self._held_out(history).items() if value is not None
        }
        return spent | numbers | held_out | {"goal_met": float(self.met(history))}

    def _held_out(self, history: History) -> dict[str, float | None]:
        """The answer on the rows that did not choose it; empty where it was not measured."""
        measured = None if history.answer is None else history.measured.get(history.answer.number)
        return (
            {}
            if measured is None
            else _without_nan(
                {
                    "rows": measured.rows,
                    "metric": measured.metric,
                    "drop_points": measured.drop,
                    "drop_ci95_low": measured.low,
                    "drop_ci95_high": measured.high,
                    "drop_upper95": measured.upper95,
                }
            )
        )

    def _row(self, found: Found) -> dict[str, Any]:
        numbers = {
            "number": found.number,
            "cost": found.cost,
            "metric": found.metric,
            "drop_points": found.drop,
            "drop_ci95_low": found.low,
            "drop_ci95_high": found.high,
            "drop_upper95": found.upper95,
            "rows": found.rows,
            "complete": found.complete,
            "feasible": found.feasible,
            "origin": found.origin,
        }
        return _without_nan(numbers)

    def _table(self, found: Sequence[Found]) -> pd.DataFrame:
        names = [v.name for v in self.space.variables]
        columns = list(self._row(found[0])) if found else ["number"]
        rows = [self._row(one) | dict(zip(names, one.chosen, strict=True)) for one in found]
        return pd.DataFrame(rows, columns=[*columns, *names])

    def _progress(self, history: History) -> Figure:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        spent, best = progress_of(history, self.total)
        axes.step(spent, best, where="post", color=COLOURS[0])
        axes.set(xlabel="evaluations of the whole set", ylabel=f"best cost, {self.cost.unit}")
        return figure


def _without_nan(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """NaN as None: JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }


def progress_of(history: History, total: int) -> tuple[list[float], list[float]]:
    """Evaluations spent, and the least feasible cost then."""
    spent, best, rows, least = [], [], history.setup_rows, math.inf
    for one in history.found:
        rows += one.rows if one.origin != "reference" else 0
        if one.feasible and one.complete:
            least = min(least, one.cost)
        spent.append(rows / total)
        best.append(least if math.isfinite(least) else math.nan)
    return spent, best


def map_of(space: Space, precisions: Mapping[str, Precision], title: str) -> Figure:
    """Layers from top to bottom, roles from left to right, each site in the shade of its precision."""
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
    """Each score against the measured loss, a dot a variable; without a measured one, the scores by rank."""
    figure = Figure(figsize=(4 * len(SCORES), 3.8), layout="constrained")
    has_measured = MEASURED in scores.table
    for axes, score in zip(figure.subplots(1, len(SCORES)), SCORES, strict=True):
        values = scores.table[score].sort_values(ascending=False)
        if has_measured:
            axes.plot(values, scores.table[MEASURED].loc[values.index], "o", markersize=4, color=COLOURS[0])
            axes.set(xlabel=score, ylabel="measured loss of accuracy, points")
        else:
            axes.plot(np.arange(len(values)), values, "o", markersize=4, color=COLOURS[0])
            axes.set(xlabel="rank", ylabel=score)
        if score != "noise_db" and (values > 0).all():
            (axes.set_xscale if has_measured else axes.set_yscale)("log")
        for index in values.index[:5]:
            x = values[index] if has_measured else list(values.index).index(index)
            y = scores.table[MEASURED][index] if has_measured else values[index]
            axes.annotate(
                scores.table["variable"][index],
                (x, y),
                (-5, 0),
                textcoords="offset points",
                ha="right",
                fontsize=7,
            )
    return figure
