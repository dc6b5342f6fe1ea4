"""Reads a study: its evaluated candidates, the best, the closest, the front, and the rows spent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from quantlab.searching.judge import Measurement
from quantlab.searching.space import Choices, Space
from quantlab.searching.study import CANDIDATE, HELD_OUT, SETUP_ROWS


@dataclass(frozen=True, kw_only=True)
class EvaluatedCandidate:
    """A candidate and what its evaluation gave."""

    number: int  # of its Optuna trial
    chosen: Choices
    cost: float
    feasible: bool  # complete and within the search's limit
    complete: bool  # False: it was given up after some rows
    measured: Measurement  # on the rows that it answered
    right: str  # which rows it has right, as packed by pack_rows; empty unless complete
    origin: str  # which proposal it came from

    @property
    def right_rows(self) -> np.ndarray:
        """Which rows the candidate has right, bool, (rows,)."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.right), np.uint8))
        return bits[: self.measured.rows].astype(bool)


def pack_rows(right: np.ndarray) -> str:
    """Packs a bool for each row into hexadecimal text."""
    return np.packbits(right).tobytes().hex()


@dataclass(frozen=True, kw_only=True)
class History:
    """A snapshot of a study."""

    space: Space
    mode: str
    trials: tuple[FrozenTrial, ...]
    setup_rows: int  # answered for scores, reference and held-out measurement
    held_out: Mapping[int, Measurement] = field(default_factory=dict)  # by candidate's number

    @classmethod
    def of(cls, study: Study, space: Space, mode: str) -> "History":
        """Reads a study."""
        rows = sum(study.user_attrs.get(SETUP_ROWS, {}).values())
        held_out = {int(key): Measurement(**one) for key, one in study.user_attrs.get(HELD_OUT, {}).items()}
        trials = tuple(study.get_trials(deepcopy=False))
        return cls(space=space, mode=mode, trials=trials, setup_rows=rows, held_out=held_out)

    @cached_property
    def evaluated(self) -> list[EvaluatedCandidate]:
        """Every evaluated candidate, in order."""
        return [self._candidate(trial) for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def running(self) -> int:
        """How many candidates are being evaluated."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials)

    @cached_property
    def pending(self) -> set[Choices]:
        """Candidates that are being evaluated or are queued."""
        unfinished = [t for t in self.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
        parameters = [{**t.params, **t.system_attrs.get("fixed_params", {})} for t in unfinished]
        names = self.space.decided
        return {tuple(p[name] for name in names) for p in parameters if p.keys() >= set(names)}

    @property
    def rows(self) -> int:
        """Rows answered so far, those for reference and scores included."""
        return self.setup_rows + sum(int(trial.user_attrs.get("rows", 0)) for trial in self.trials)

    @property
    def best(self) -> EvaluatedCandidate | None:
        """The cheapest feasible candidate; in ``accuracy`` mode the most accurate one. Of equals, the
        one with the smaller drop (cost), then the earlier one."""
        answers = [one for one in self.evaluated if one.complete and one.feasible]
        if self.mode == "accuracy":
            return min(answers, key=lambda one: (one.measured.drop, one.cost, one.number), default=None)
        return min(answers, key=lambda one: (one.cost, one.measured.drop, one.number), default=None)

    @property
    def answer(self) -> EvaluatedCandidate | None:
        """The best candidate, or the closest where none is feasible."""
        return self.best or self.closest

    @property
    def decided_nothing(self) -> bool:
        """True if the answer is every variable at its widest, which needs no search."""
        precisions = self.space.precisions
        return self.answer is not None and precisions(self.answer.chosen) == precisions(self.space.wide)

    @property
    def closest(self) -> EvaluatedCandidate | None:
        """The complete candidate with the smallest drop."""
        complete = (one for one in self.evaluated if one.complete)
        return min(complete, key=lambda one: (one.measured.drop, one.cost), default=None)

    @property
    def front(self) -> list[EvaluatedCandidate]:
        """The complete candidates that no other beats in both cost and drop, cheapest first."""
        front: list[EvaluatedCandidate] = []
        complete = (one for one in self.evaluated if one.complete)
        for one in sorted(complete, key=lambda one: (one.cost, one.measured.drop)):
            if not front or one.measured.drop < front[-1].measured.drop:
                front.append(one)
        return front

    def chosen(self, trial: FrozenTrial) -> Choices:
        """A trial's candidate."""
        return tuple(trial.params[name] for name in self.space.decided)

    def _candidate(self, trial: FrozenTrial) -> EvaluatedCandidate:
        record = json.loads(trial.user_attrs[CANDIDATE])
        measured = Measurement(**record.pop("measured"))
        return EvaluatedCandidate(number=trial.number, chosen=self.chosen(trial), measured=measured, **record)
