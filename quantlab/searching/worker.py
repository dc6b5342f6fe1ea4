"""One worker of a study: proposes a candidate, evaluates as many rows as a decision needs, records it, and
repeats."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.exceptions import TrialPruned
from optuna.study import Study
from optuna.trial import Trial

from quantlab.searching.costs import Cost
from quantlab.searching.evaluate import CandidateOutcomes, Runner, evaluate_candidate
from quantlab.searching.history import EvaluatedCandidate, History, pack_rows
from quantlab.searching.judge import Judge
from quantlab.searching.objective import TOLERANCE, Objective
from quantlab.searching.proposals import Losses
from quantlab.searching.proposer import Proposer
from quantlab.searching.search_config import Search
from quantlab.searching.space import Choices, Space
from quantlab.searching.study import (
    OWNER,
    candidate_params,
    distributions_of,
    earlier_claims,
    retry_dead,
    retry_stale,
)
from quantlab.tracking.liveness import Owner

MOST_DUPLICATES = 100  # in a row: the sampler has nothing new
MOST_WAIT_HEARTBEATS = 4  # for candidates of other workers; a silent worker's candidate is free after 2
POLL_S = 0.5
DEARER = "costs as much as the best"


class CandidateTakenError(Exception):
    """Another trial has this candidate, or the last place.

    ``Study.optimize`` keeps the heartbeat of a running trial, and its objective ends a trial as failed by
    raising: the worker raises this error in the objective and names it in ``catch``.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchWorker:
    """What one process needs to work on a study."""

    search: Search
    space: Space
    cost: Cost
    runner: Runner
    columns: list[int]  # the model's classes in the task's order
    judge: Judge  # of the rows that candidates are judged on
    losses: Mapping[str, Mapping[str, Losses]]  # predicted, by alternative and score, best predictor first
    whole: int  # rows of one evaluation, the unit of the budget

    def work(self, study: Study, after: Callable[[History, EvaluatedCandidate], None]) -> str:
        """Works until the budget is spent or nothing is left to try; returns the reason.

        ``after`` is called with each candidate that this worker has evaluated.
        """
        nothing_new, waited_s = 0, 0.0
        while True:
            retry_dead(study, len(self.space.decided), 2 * self.search.heartbeat_s)
            history = self.history(study)
            if reason := self._over(history, nothing_new):
                return reason
            if self._others_hold_the_rest(history):
                if waited_s > MOST_WAIT_HEARTBEATS * self.search.heartbeat_s:
                    return "other workers have the last candidates"
                time.sleep(POLL_S)
                waited_s += POLL_S
                retry_stale(study)
                continue
            if proposal := self.propose(history):
                origin, chosen = proposal
                study.enqueue_trial(candidate_params(self.space, chosen), user_attrs={"origin": origin})
            evaluated: list[EvaluatedCandidate] = []
            study.optimize(self._evaluating(study, evaluated), n_trials=1, catch=(CandidateTakenError,))
            nothing_new = 0 if evaluated else nothing_new + 1
            for candidate in evaluated:
                after(self.history(study), candidate)

    def history(self, study: Study) -> History:
        """The study's present state."""
        return History.of(study, self.space, self.search.mode)

    def propose(self, history: History) -> tuple[str, Choices] | None:
        """The next candidate by the scores and its origin. None: ask the sampler."""
        return self._proposer.propose(history)

    def enter_reference(self, study: Study) -> None:
        """Adds the reference ``all16`` to the study: it is a candidate, and its answers are known already."""
        wide = candidate_params(self.space, self.space.wide)
        known = any(trial.params == wide for trial in study.get_trials(deepcopy=False))
        if known or self.search.reference != "all16":
            return
        answered = np.ones(len(self.judge.labels), bool)
        outcomes = CandidateOutcomes(logits=self.judge.reference, answered=answered)
        candidate = self._judged(self.space.wide, outcomes, number=0, origin="reference")
        study.add_trial(self._objective.finished_trial(candidate))

    @cached_property
    def _proposer(self) -> Proposer:
        return Proposer(search=self.search, space=self.space, cost=self.cost, losses=self.losses)

    @cached_property
    def _objective(self) -> Objective:
        return Objective(
            search=self.search,
            space=self.space,
            cost=self.cost,
            score=self.judge.score,
        )

    def _others_hold_the_rest(self, history: History) -> bool:
        """True if the running candidates would use up the budget or the places, answered in full."""
        running, rows = history.running, len(self.judge.labels)
        places = self.search.trials is not None and len(history.evaluated) + running >= self.search.trials
        return running > 0 and (
            places or history.rows + (running + 1) * rows > self.search.budget * self.whole
        )

    def _over(self, history: History, nothing_new: int) -> str | None:
        """Why the search ends here; None while it goes on."""
        rows, evaluated = len(self.judge.labels), len(history.evaluated)
        if history.rows + rows > self.search.budget * self.whole:
            return f"the budget of {self.search.budget:g} evaluations is spent"
        if self.search.trials is not None and evaluated >= self.search.trials:
            return f"{evaluated} candidates are evaluated"
        narrowest = self.cost.of(self.space, self.space.narrow)
        if self.search.mode == "cost" and history.best and history.best.cost <= narrowest:
            return "nothing is cheaper"
        if evaluated == math.prod(map(len, self.space.decided.values())):
            return "every candidate is evaluated"
        if nothing_new > MOST_DUPLICATES:
            return f"none of {MOST_DUPLICATES} sampled candidates was new and cheaper"
        return None

    def _evaluating(self, study: Study, evaluated: list[EvaluatedCandidate]) -> Callable[[Trial], Any]:
        """Optuna's objective function. It appends the candidate to ``evaluated``, since Optuna returns only
        numbers."""

        def evaluating(trial: Trial) -> Any:
            for name, distribution in distributions_of(self.space).items():
                trial.suggest_categorical(name, distribution.choices)
            chosen = tuple(trial.params[name] for name in self.space.decided)
            trial.set_user_attr(OWNER, asdict(Owner.me()))
            self._claim(study, trial)
            history = self.history(study)
            if self._hopelessly_dear(self.cost.of(self.space, chosen), history):
                raise TrialPruned(DEARER)
            hopeless = None if chosen == self.space.wide else self._hopeless(history)
            outcomes = evaluate_candidate(self.runner, chosen, self.columns, hopeless)
            origin = trial.user_attrs.get("origin", "sampler")
            candidate = self._judged(chosen, outcomes, trial.number, origin)
            if candidate.complete and (self.runner.kept is None or is_better_start(candidate, history.best)):
                self.runner.keep(chosen)
            evaluated.append(candidate)
            return self._objective.record(study, trial, candidate)

        return evaluating

    def _claim(self, study: Study, trial: Trial) -> None:
        """Raises CandidateTakenError if an earlier trial has the same candidate or the last place."""
        others = earlier_claims(study.get_trials(deepcopy=False), trial.number)
        if any(other.params == trial.params for other in others):
            raise CandidateTakenError("evaluated already, or just now")
        if self.search.trials is not None and len(others) >= self.search.trials:
            raise CandidateTakenError("all places are taken")

    def _hopelessly_dear(self, cost: float, history: History) -> bool:
        if self.search.mode == "accuracy":
            return cost > (self.search.max_cost or 0) + TOLERANCE
        prunes = self.search.mode == "cost" and self.search.prune_p > 0
        return prunes and history.best is not None and cost >= history.best.cost

    def _hopeless(self, history: History) -> Callable[[CandidateOutcomes], bool] | None:
        """The test that gives a candidate up on the rows so far: beyond the limit (mode ``cost``), or less
        accurate than the best (mode ``accuracy``)."""
        p, best = self.search.prune_p, history.best
        if p == 0 or not self.judge.counts_right or self.search.mode == "pareto":
            return None
        if self.search.mode == "cost":
            return lambda outcomes: self.judge.exceeds_p(outcomes, self.search.max_drop) < p
        return None if best is None else lambda outcomes: self.judge.behind_p(outcomes, best.right_rows) < p

    def _judged(
        self, chosen: Choices, outcomes: CandidateOutcomes, number: int, origin: str
    ) -> EvaluatedCandidate:
        right = pack_rows(self.judge.right(outcomes)) if outcomes.complete else ""
        measured = self.judge.measure(outcomes)
        return self._objective.candidate(chosen, measured, number, origin, right, outcomes.complete)


def is_better_start(candidate: EvaluatedCandidate, best: EvaluatedCandidate | None) -> bool:
    """True if later candidates will resemble this one more than the best so far."""
    return best is None or (candidate.feasible and candidate.cost <= best.cost)
