"""What a search has found so far, in words and as plain data."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlab.network.sites import Site
from quantlab.results.scale import Scale, scale_of
from quantlab.searching.alternatives import OWN
from quantlab.searching.costs import Cost
from quantlab.searching.history import EvaluatedCandidate, History
from quantlab.searching.judge import Measurement
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.space import Space
from quantlab.tasks.sampling import FEWEST

# Sets of wide sites that people choose by hand, for comparison.
HAND_MADE = {
    "x, h, y": ("*.ffn.in", "*.ffn.out", "*.ffn.sum"),
    "x, h, y and attention's output": ("*.ffn.in", "*.ffn.out", "*.ffn.sum", "*.attn.out"),
    "all residual sums": ("*.attn.sum", "*.ffn.sum", "embed.sum"),
    "everything": ("*",),
}
COLUMNS = 80  # of a terminal


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerSummary:
    """Describes a search's goal, its answer and how good the answer is on other rows."""

    config: SearchConfig
    space: Space
    cost: Cost
    sites: Sequence[Site]  # all of the model's
    whole: int  # rows of the evaluation set
    choosing: int  # of these, the rows that candidates are judged on

    @property
    def scale(self) -> Scale:
        """How the task's first metric reads."""
        return scale_of(self.config.task.metrics[0])

    @property
    def _quality(self) -> str:
        """What a front trades for cost."""
        return "accuracy" if self.scale.percent else self.scale.words

    def as_data(self, history: History) -> dict[str, Any]:
        """The contents of ``best.json``. ``held_out`` in it is the answer on the rows that did not choose it:
        null until it is measured, and without such rows."""
        answer, held_out = history.answer, self._held_out(history)
        sites = {} if answer is None else self.space.by_site(answer.chosen)
        more: dict[str, Any] = {"held_out": held_out or None, "sites": sites}
        if answer is not None and self.space.alternatives != (OWN,):
            more["slots"] = self.space.slots(answer.chosen)
        return {
            "goal": self.goal(),
            "cost_unit": self.cost.unit,
            "score": self.scale.score.name,
            "met": self.met(history),
            "answer": None if answer is None else self.row(answer) | more,
            "candidates": len(history.evaluated),
            "rows": history.rows,
            "evaluations": history.rows / self.whole,
            "hand_made": self.hand_made(),
        }

    def met(self, history: History) -> bool:
        """True if an answer is within the limit and narrower than everything at its widest."""
        return history.best is not None and not history.decided_nothing

    def goal(self) -> str:
        """What the search looks for, in words."""
        search = self.config.search
        limit = f"at most {search.max_drop:g} points below {search.reference}"
        if not self.scale.percent:
            limit = f"at most {search.max_drop:g} % more {self.scale.words} than {search.reference}"
        if search.mode == "cost":
            sure = " with 95 % confidence" if search.decide == "bound" else ""
            return f"least {self.cost.unit}, {limit}{sure}"
        if search.mode == "accuracy":
            return f"best {self._quality} within {search.max_cost:g} {self.cost.unit}"
        return f"the front of {self.cost.unit} and {self._quality}"

    def line(self, candidate: EvaluatedCandidate) -> str:
        """A candidate in one line, measured on the rows that choose."""
        cost = f"{candidate.cost:g} {self.cost.unit}{self._slots(candidate)}"
        return f"{cost}, {self._accuracy(candidate.measured)}"

    def _slots(self, candidate: EvaluatedCandidate) -> str:
        """A candidate's alternative in words; empty if there is one alone."""
        slots = self.space.slots(candidate.chosen)
        return f" with {slots}" if self.space.decides_slots else ""

    def honesty(self, history: History) -> str:
        """The answer measured on rows that did not choose it, or why there is no such number."""
        measured = None if history.answer is None else history.held_out.get(history.answer.number)
        if measured is None:
            if self.choosing < self.whole:
                return "not measured yet on the rows that did not choose it"
            return (
                f"measured on the {self.whole:,} rows that chose it, so better than it is on others: "
                f"evaluation.holdout={self.config.evaluation.holdout:g} leaves no {FEWEST} "
                "rows on either side"
            )
        search = self.config.search
        drop = measured.upper95 if search.decide == "bound" else measured.drop
        beyond = f", beyond search.max_drop={search.max_drop:g}" if drop > search.max_drop else ""
        over = beyond if search.mode == "cost" else ""
        return f"on {measured.rows:,} rows that did not choose it: {self._accuracy(measured)}{over}"

    def _accuracy(self, measured: Measurement) -> str:
        low, high = measured.low, measured.high
        interval = "" if math.isnan(low) else f" (95 % interval {low:.2f} to {high:.2f})"
        better = ", which is better" if measured.drop < 0 else ""
        reference = self.config.search.reference
        below = f"{measured.drop:.2f} points below {reference}"
        if not self.scale.percent:
            below = f"{measured.drop:.2f} % more than {reference}"
        return f"{measured.metric:.4f}, {below}{better}{interval}"

    def text(self, history: History, reason: str) -> list[str]:
        """The end of a search in lines for a terminal: answer, front, hand-made sets, and what was spent."""
        lines = [self._first_line(history)]
        if history.answer:
            lines.append(f"  {self.honesty(history)}")
        if history.front:
            lines += [
                f"front of cost and {self._quality}:",
                *(f"  {self.line(one)}" for one in history.front),
            ]
        if hand_made := self.hand_made():
            lines.append(f"sets that people make by hand, in {self.cost.unit}:")
            lines += [f"  {cost:<6g} {name}" for name, cost in hand_made.items()]
        spent = f"{history.rows / self.whole:.2f} evaluations of the whole set"
        lines.append(f"{spent}, {len(history.evaluated)} candidates; ended because {reason}")
        return [part for line in lines for part in wrapped(line)]

    def _first_line(self, history: History) -> str:
        if history.best and history.decided_nothing:
            count = len(history.evaluated)
            tried = f"the best of {count} candidates" if count > 1 else "all that was tried"
            return f"nothing was decided: everything at its widest is {tried}: {self.line(history.best)}"
        if history.best:
            return f"best: {self.line(history.best)}"
        if history.closest:
            widest = "; it is everything at its widest" if history.decided_nothing else ""
            return f"goal not met ({self.goal()}); the closest plan: {self.line(history.closest)}{widest}"
        return "no candidate was evaluated in full"

    def progress(self, history: History, candidate: EvaluatedCandidate) -> str:
        """One candidate in one line: what was spent by then, where it came from, and what it gave."""
        best, measured = history.best, candidate.measured
        answered = "all rows" if candidate.complete else f"{measured.rows}/{self.choosing} rows"
        so_far = f"best {best.cost:g}" if best else "none within the limit yet"
        return (
            f"[{history.rows / self.whole:5.2f}] {candidate.origin}: {candidate.cost:g} {self.cost.unit}"
            f"{self._slots(candidate)}, {measured.drop:+.2f} {self.scale.loss_unit}, {answered}; {so_far}"
        )

    def hand_made(self) -> dict[str, float]:
        """Costs of the hand-made sets in the search's space, without sets whose sites it lacks."""
        narrow, wide = self.space.choices[0], self.space.choices[-1]
        costs = {}
        for name, patterns in HAND_MADE.items():
            of_sites = {site.name: wide if site.matches(patterns) else narrow for site in self.space.sites}
            if wide in of_sites.values():
                costs[name] = self.cost.of(self.space, self.space.chosen(of_sites))
        operands = {site.name for site in self.sites if site.read_at}
        inside = {s.name: narrow if s.name in operands else wide for s in self.space.sites}
        if wide in inside.values() and narrow in inside.values():
            outside_gemm = self.cost.of(self.space, self.space.chosen(inside))
            costs["placement gemm (what enters no product)"] = outside_gemm
        return costs

    def metrics(self, history: History) -> dict[str, float]:
        """The search's metrics in MLflow."""
        answer = history.answer
        spent = {"evaluations": history.rows / self.whole, "candidates": float(len(history.evaluated))}
        if answer is None:
            return spent
        measured = answer.measured
        numbers = {
            "best_cost": answer.cost,
            "best_metric": measured.metric,
            f"best_{self.scale.score.loss_names.value}": measured.drop,
        }
        held_out = {
            f"held_out_{name}": value for name, value in self._held_out(history).items() if value is not None
        }
        return spent | numbers | held_out | {"goal_met": float(self.met(history))}

    def _held_out(self, history: History) -> dict[str, float | None]:
        """The answer on the rows that did not choose it; empty if that is not measured."""
        measured = None if history.answer is None else history.held_out.get(history.answer.number)
        return {} if measured is None else {"rows": measured.rows, **self._measured_columns(measured)}

    def row(self, candidate: EvaluatedCandidate) -> dict[str, Any]:
        """A candidate's columns in the tables; None where there is no number."""
        return {
            "number": candidate.number,
            "cost": candidate.cost,
            **self._measured_columns(candidate.measured),
            "rows": candidate.measured.rows,
            "complete": candidate.complete,
            "feasible": candidate.feasible,
            "origin": candidate.origin,
        }

    def _measured_columns(self, measured: Measurement) -> dict[str, float | None]:
        losses = (measured.drop, measured.low, measured.high, measured.upper95)
        names = self.scale.score.loss_names
        return _without_nan({"metric": measured.metric, **dict(zip(names, losses, strict=True))})


def wrapped(line: str) -> list[str]:
    """A line in lines of at most 80 columns, the later ones indented; words stay whole."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(
        line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """NaN as None, since JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
