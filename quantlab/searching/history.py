"""A study read as candidates and what became of them: the best, the closest, the front, the rows spent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from quantlab.searching.space import Choices, Space
from quantlab.searching.study import HELD_OUT, SETUP_ROWS


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of a candidate that was evaluated. Drops are points of the task's metric below the
    reference."""

    number: int
    chosen: Choices
    cost: float
    feasible: bool
    complete: bool  # all rows were answered; otherwise it was given up, and the rest is of those that were
    rows: int
    metric: float
    drop: float
    low: float
    high: float
    upper95: float
    right: str  # which rows are right, packed as hexadecimal; of complete ones
    origin: str

    @property
    def outcomes(self) -> np.ndarray:
        """Which rows are right, bool."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.right), np.uint8))
        return bits[: self.rows].astype(bool)

    @staticmethod
    def packed(right: np.ndarray) -> str:
        """Outcomes as text."""
        return np.packbits(right).tobytes().hex()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A candidate on the rows that did not choose it. Drops as :class:`Found` has them."""

    rows: int
    metric: float
    drop: float
    low: float
    high: float
    upper95: float


@dataclass(frozen=True, kw_only=True)
class History:
    """A study as it is now."""

    space: Space
    mode: str
    trials: tuple[FrozenTrial, ...]
    setup_rows: int
    measured: Mapping[int, HeldOut] = field(default_factory=dict)  # by candidate's number

    @classmethod
    def of(cls, study: Study, space: Space, mode: str) -> "History":
        """Reads a study."""
        rows = sum(study.user_attrs.get(SETUP_ROWS, {}).values())
        measured = {int(number): HeldOut(**one) for number, one in study.user_attrs.get(HELD_OUT, {}).items()}
        trials = tuple(study.get_trials(deepcopy=False))
        return cls(space=space, mode=mode, trials=trials, setup_rows=rows, measured=measured)

    @cached_property
    def found(self) -> list[Found]:
        """Every evaluated candidate, in order."""
        return [self._found(trial) for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def running(self) -> int:
        """How many candidates are being evaluated."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials)

    @cached_property
    def pending(self) -> set[Choices]:
        """Candidates that are being evaluated, or wait for it."""
        unfinished = [t for t in self.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
        parameters = [{**t.params, **t.system_attrs.get("fixed_params", {})} for t in unfinished]
        names = [v.name for v in self.space.variables]
        return {tuple(p[name] for name in names) for p in parameters if p.keys() >= set(names)}

    @property
    def rows(self) -> int:
        """Rows that were answered so far, reference and scores included."""
        return self.setup_rows + sum(int(trial.user_attrs.get("rows", 0)) for trial in self.trials)

    @property
    def best(self) -> Found | None:
        """The best answer so far: evaluated in full, and feasible. Ties go to the smaller drop, then to the
        earlier."""
        answers = [one for one in self.found if one.complete and one.feasible]
        if self.mode == "accuracy":
            return min(answers, key=lambda one: (one.drop, one.cost, one.number), default=None)
        return min(answers, key=lambda one: (one.cost, one.drop, one.number), default=None)

    @property
    def answer(self) -> Found | None:
        """The best, or where there is none the closest."""
        return self.best or self.closest

    @property
    def decided_nothing(self) -> bool:
        """Whether the answer is everything at its widest: what there is without a search."""
        return self.answer is not None and self.answer.chosen == self.space.wide

    @property
    def closest(self) -> Found | None:
        """Of all evaluated in full, the one with the least drop: what there is where no candidate is
        feasible."""
        return min(
            (one for one in self.found if one.complete), key=lambda one: (one.drop, one.cost), default=None
        )

    @property
    def front(self) -> list[Found]:
        """The candidates evaluated in full that none beats in both cost and drop, cheapest first."""
        front: list[Found] = []
        for one in sorted((one for one in self.found if one.complete), key=lambda one: (one.cost, one.drop)):
            if not front or one.drop < front[-1].drop:
                front.append(one)
        return front

    def chosen(self, trial: FrozenTrial) -> Choices:
        """A trial's candidate."""
        return tuple(trial.params[v.name] for v in self.space.variables)

    def _found(self, trial: FrozenTrial) -> Found:
        return Found(number=trial.number, chosen=self.chosen(trial), **json.loads(trial.user_attrs["found"]))
