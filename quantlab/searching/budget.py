"""How a search spends its budget, computed before a checkpoint is loaded."""

import math
from dataclasses import dataclass

from quantlab.searching.search_config import Search
from quantlab.searching.space import Space

ENOUGH = 5  # candidates that a suggested budget leaves room for


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The rows of a search. A row is one example answered once; a backward pass counts as two more rows."""

    evaluations: float  # search.budget
    whole: int  # rows of the evaluation set
    choosing: int  # of these, the rows that candidates are judged on; the others measure the answer
    scored: int  # calibration rows that the scores use; 0 without scores
    variables: int
    narrower: int  # choices of a variable besides the widest
    alternatives: int = 1  # of transform, split and rounding: each has scores of its own

    @classmethod
    def of(cls, search: Search, space: Space, whole: int, choosing: int, calibrating: int) -> "Budget":
        """The budget of a search on ``whole`` evaluation rows and ``calibrating`` calibration rows."""
        return cls(
            evaluations=search.budget,
            whole=whole,
            choosing=choosing,
            scored=min(search.sensitivity_rows, calibrating) if search.seeded else 0,
            variables=len(space.variables),
            narrower=len(space.choices) - 1,
            alternatives=len(space.alternatives),
        )

    @property
    def row_of_scores(self) -> int:
        """Rows that all scores of :func:`score_sites` take for each calibration row."""
        return self.alternatives * (self.narrower * (1 + 3 + self.variables) + 1)

    @property
    def scores(self) -> int:
        """Rows of the scores."""
        return self.scored * self.row_of_scores

    @property
    def answer(self) -> int:
        """Rows that measure the answer and its reference at the end, on rows that did not choose it."""
        return 2 * (self.whole - self.choosing)

    @property
    def candidates(self) -> int:
        """The number of candidates that can be answered in full besides scores, reference and answer."""
        left = self.evaluations * self.whole - self.scores - self.answer - self.choosing
        return max(0, math.floor(left / self.choosing))

    def check(self) -> None:
        """Raises ValueError with settings that would help if no candidate can be answered in full."""
        if self.candidates:
            return
        enough = math.ceil((self.scores + self.answer + (1 + ENOUGH) * self.choosing) / self.whole)
        affordable = math.floor(self.evaluations * self.whole / 2 / self.row_of_scores)
        helps = [f"search.budget={enough}"]
        if self.scored:
            helps += [f"search.sensitivity_rows={affordable}"] if 0 < affordable < self.scored else []
            helps += ["search.group_by=layer_role", "search.seeded=false"]
        raise ValueError(f"{self}. Nothing could be tried: take {', '.join(helps)}, or more evaluation rows")

    def __str__(self) -> str:
        scores, answer, reference = (rows / self.whole for rows in (self.scores, self.answer, self.choosing))
        held_out = f", {answer:.2g} for the answer on held-out rows" if answer else ""
        return (
            f"search.budget={self.evaluations:g} evaluations of {self.whole:,} rows: {scores:.3g} for the "
            f"scores, {reference:.2g} for the reference{held_out}; the rest is {self.candidates} candidates "
            "in full"
        )
