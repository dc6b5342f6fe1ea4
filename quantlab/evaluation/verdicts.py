"""Whether a model loses more than a limit against FP32, decided before all rows are answered.

A verdict is about the selected rows: what the loss on all of them is. Rows are answered in a random order,
whole clusters at a time, so that what was answered at any time is a sample of them without replacement.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantlab.evaluation.sequential import asymptotic_interval, bounded_interval
from quantlab.tasks.sampling import Purpose
from quantlab.tasks.scores import SCORES, Score, compute

FIRST, FIRST_WINDOWS = 64, 32  # units before the first look; fewer windows are too few for a normal limit
GROWTH = 1.25  # of the answered units from look to look
SLACK = 1e-9  # of differences in floating point


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What a model's answers decided."""

    keeps: bool  # the loss on all selected rows is at most the limit
    rows: np.ndarray  # (n,) ascending: which of the selected rows were answered
    selected: int  # rows
    low: float  # of the 95 % interval of the loss on all selected rows; NaN where all of them were answered
    high: float

    @property
    def complete(self) -> bool:
        """Whether all selected rows were answered, so that their loss is known."""
        return len(self.rows) == self.selected

    @property
    def word(self) -> str:
        """``keeps`` or ``loses``."""
        return "keeps" if self.keeps else "loses"


def require_decidable(metric: str, max_drop: float) -> None:
    """Raises ValueError where no test of this score keeps its level while answers come in, and where a share
    cannot lose ``max_drop`` points."""
    score = SCORES[metric]
    if not score.relative and max_drop > 100:
        raise ValueError(f"evaluation.max_drop is in points of {metric}, at most 100; got {max_drop!r}")
    if score.right_of is None and not score.relative:
        raise ValueError(
            f"evaluation.until=decided is for shares of right answers and for perplexities; {metric} is no "
            "mean over rows, so no interval of it holds while answers come in: set evaluation.until=all"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SequentialTest:
    """Decides from the rows answered so far. All arrays are of the selected rows."""

    metric: str  # a share of right answers, or a perplexity
    limit: float  # of the loss: a fraction of 1, or for a perplexity the ratio less 1
    labels: np.ndarray  # (N,)
    reference: np.ndarray  # (N, C): FP32's outcomes
    clusters: np.ndarray | None  # (N,): which rows belong together; None: each stands alone
    seed: int  # of the order

    @property
    def score(self) -> Score:
        return SCORES[self.metric]

    @cached_property
    def place(self) -> np.ndarray:
        """(N,): the place of each row's unit in the order in which units are answered, from 0."""
        names = np.arange(len(self.labels)) if self.clusters is None else self.clusters
        units = np.unique(names, return_inverse=True)[1]
        stream = np.random.PCG64(np.random.SeedSequence([self.seed, Purpose.ANSWER]))
        return np.argsort(np.argsort(stream.random_raw(units.max() + 1)))[units]

    def chunks(self) -> list[np.ndarray]:
        """The rows in the order in which they are answered, cut where one looks."""
        units, looks = int(self.place.max()) + 1, [FIRST_WINDOWS if self.score.relative else FIRST]
        while looks[-1] < units:
            looks.append(max(looks[-1] + looks[0], math.ceil(GROWTH * looks[-1])))
        order = np.argsort(self.place, kind="stable")
        return [part for part in np.split(order, np.searchsorted(self.place[order], looks)) if len(part)]

    def interval(self, rows: np.ndarray, values: np.ndarray) -> tuple[float, float]:
        """The 95 % interval of the loss on all selected rows, given the outcomes ``values`` (n, C) for
        ``rows`` (n,), which are one or more chunks from the first on, but not all."""
        units, reference = int(self.place.max()) + 1, self.reference[rows]
        if self.score.parts is not None:
            (above, below), (reference_above, _) = self.score.parts(values), self.score.parts(reference)
            growth = math.log1p(self.limit)
            beyond = self._by_unit(rows, above - reference_above - growth * below)
            scale = units / float(self.score.parts(self.reference)[1].sum())
            low, high = (growth + scale * end for end in asymptotic_interval(beyond, units))
            return math.expm1(low), math.expm1(high)
        right, reference_right = (self.score.right(each, self.labels[rows]) for each in (values, reference))
        assert right is not None and reference_right is not None  # see require_decidable
        lost = self._by_unit(rows, reference_right.astype(float) - right)
        largest = int(np.bincount(self.place).max())
        scale = largest * units / len(self.labels)
        low, high = bounded_interval(lost / largest, units)
        return scale * low, scale * high

    def verdict(self, rows: np.ndarray, values: np.ndarray) -> Verdict | None:
        """The verdict; None where more rows must be answered. The arguments are those of :meth:`interval`,
        or of all rows."""
        ordered, selected = np.sort(rows), len(self.labels)
        if len(rows) == selected:
            value, fp32 = (
                compute([self.metric], each, self.labels[rows])[self.metric]
                for each in (values, self.reference[rows])
            )
            keeps = self.score.lost(value, fp32) <= self.limit + SLACK
            return Verdict(keeps=keeps, rows=ordered, selected=selected, low=math.nan, high=math.nan)
        low, high = self.interval(rows, values)
        if low <= self.limit < high:
            return None
        return Verdict(keeps=high <= self.limit, rows=ordered, selected=selected, low=low, high=high)

    def estimates(self, verdict: Verdict, scores: Mapping[str, float]) -> dict[str, float]:
        """What replaces and joins ``scores``, which are of the answered rows.

        The primary score and FP32's become those of all selected rows: FP32's is known, and what the model
        loses on the answered rows estimates what it loses on all. The interval is that of the verdict.
        """
        known = {
            "rows_answered": float(len(verdict.rows)),
            "rows_selected": float(verdict.selected),
            "keeps": float(verdict.keeps),
        }
        if verdict.complete:
            return known
        name, fp32 = self.metric, self.score.total(self.reference, self.labels)
        kind, shift = ("ratio", 1.0) if self.score.relative else ("drop", 0.0)
        lost = scores[f"{name}_{kind}"]
        return known | {
            name: fp32 * lost if self.score.relative else fp32 - lost,
            f"{name}_fp32": fp32,
            f"{name}_{kind}_ci95_low": shift + verdict.low,
            f"{name}_{kind}_ci95_high": shift + verdict.high,
        }

    def _by_unit(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums of the values of each answered unit, in the order of the answers."""
        return np.bincount(self.place[rows], weights=values)
