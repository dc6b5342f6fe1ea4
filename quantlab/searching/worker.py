"""One worker of a study: asks for a candidate, evaluates as much of it as a decision needs, tells, and
again."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.exceptions import TrialPruned
from optuna.study import Study
from optuna.trial import Trial, TrialState, create_trial

from quantlab.searching.costs import Cost
from quantlab.searching.evaluate import Judge, Outcome, Runner, evaluate
from quantlab.searching.history import Found, History
from quantlab.searching.proposals import Known, Losses, bisect, greedy, ladder, least_loss, thinner
from quantlab.searching.search_config import Search
from quantlab.searching.space import Choices, Space
from quantlab.searching.study import OWNER, distributions, earlier, params, retry_dead, retry_stale
from quantlab.tracking.liveness import Owner

TOLERANCE = 1e-9  # points: drops are differences of means
RUNGS_OF_A_FRONT = 9
MOST_DUPLICATES = 100  # in a row: the sampler knows nothing new
MOST_WAIT_HEARTBEATS, POLL_S = (
    4,
    0.5,
)  # for other workers' last candidates, which are ours if they fall silent
DEARER = "costs as much as the best"
DASHBOARD = "constraints"  # where optuna-dashboard looks for them; Optuna itself reads them by their names
WORST = -1.0  # of all metrics: a correlation can be that low


class TakenError(Exception):
    """Another trial has this candidate, or the last place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Worker:
    """What one process needs to work on a study.

    ``losses`` are predicted ones by score, best predictor first. ``whole`` is the rows of one evaluation, in
    which the budget counts; the judge has those that candidates are judged on.
    """

    search: Search
    space: Space
    cost: Cost
    runner: Runner
    columns: list[int]
    judge: Judge
    losses: Mapping[str, Losses]
    whole: int

    def work(self, study: Study, after: Callable[[History, Found], None]) -> str:
        """Works until the budget is spent or nothing is left to try; returns which. ``after`` sees each
        candidate that this worker has evaluated."""
        nothing_new, waited_s = 0, 0.0
        while True:
            retry_dead(study, len(self.space.variables), 2 * self.search.heartbeat_s)
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
                study.enqueue_trial(params(self.space, chosen), user_attrs={"origin": origin})
            evaluated: list[Found] = []
            study.optimize(self._objective(study, evaluated), n_trials=1, catch=(TakenError,))
            nothing_new = 0 if evaluated else nothing_new + 1
            for found in evaluated:
                after(self.history(study), found)

    def history(self, study: Study) -> History:
        """The study as it is now."""
        return History.of(study, self.space, self.search.mode)

    def propose(self, history: History) -> tuple[str, Choices] | None:
        """The next candidate that the scores speak for, with its origin; None where a sampler is to be
        asked."""
        nothing_whole = self.search.mode == "cost" and history.closest is None
        if nothing_whole and self.space.wide not in history.pending:
            return "everything at its widest", self.space.wide  # what there is if nothing is within the limit
        if not self.search.seeded:
            return None
        known = {one.chosen: Known(feasible=one.feasible) for one in history.found}
        known |= {chosen: Known(feasible=None) for chosen in history.pending}
        return next(self._proposals(history, known), None)

    def _proposals(self, history: History, known: dict[Choices, Known]) -> Iterator[tuple[str, Choices]]:
        best = history.best
        for score, ladders in self.ladders.items():
            for name, rungs in ladders.items():
                if self.search.mode == "cost":
                    picks = [bisect([r for r in rungs if best is None or self._cost(r) < best.cost], known)]
                elif self.search.mode == "accuracy":
                    assert self.search.max_cost is not None
                    within = [r for r in rungs if self._cost(r) <= self.search.max_cost]
                    picks = [*within[-1:]]
                else:
                    picks = [
                        rungs[i] for i in np.linspace(0, len(rungs) - 1, RUNGS_OF_A_FRONT).round().astype(int)
                    ]
                yield from (
                    (f"{name}: {score}", pick) for pick in picks if pick is not None and pick not in known
                )
        if self.search.mode == "cost" and best is not None and self.losses:
            thinned = thinner(self.space, self.cost, next(iter(self.losses.values())), best.chosen, known)
            if thinned is not None:
                yield "thinner", thinned
            elif len(history.trials) % 2 == 0:  # in turns with the sampler
                cheaper = best.cost - self._least_step()
                losses = next(iter(self.losses.values()))
                exchanged = least_loss(self.space, self.cost, losses, cheaper, known)
                if exchanged is not None:
                    yield "next best", exchanged

    @cached_property
    def ladders(self) -> dict[str, dict[str, list[Choices]]]:
        """By score and by how they are made."""
        return {
            score: {
                "integer program": ladder(self.space, self.cost, losses),
                "greedy": greedy(self.space, self.cost, losses),
            }
            for score, losses in self.losses.items()
        }

    def _least_step(self) -> float:
        """The least by which two candidates' costs can differ."""
        prices = {self.cost.table[v.name, c] for v in self.space.variables for c in self.space.choices}
        steps = [abs(a - b) for a in prices for b in prices if abs(a - b) > TOLERANCE]
        return min(steps) / 2 if steps else 0.0

    def _cost(self, chosen: Choices) -> float:
        return self.cost.of(self.space, chosen)

    def _others_hold_the_rest(self, history: History) -> bool:
        """Whether the candidates that run now, all rows of each, would use up what is left."""
        running, rows = history.running, len(self.judge.labels)
        places = self.search.trials is not None and len(history.found) + running >= self.search.trials
        return running > 0 and (
            places or history.rows + (running + 1) * rows > self.search.budget * self.whole
        )

    def _over(self, history: History, nothing_new: int) -> str | None:
        rows = len(self.judge.labels)
        if history.rows + rows > self.search.budget * self.whole:
            return f"the budget of {self.search.budget:g} evaluations is spent"
        if self.search.trials is not None and len(history.found) >= self.search.trials:
            return f"{len(history.found)} candidates are evaluated"
        if self.search.mode == "cost" and history.best and history.best.cost <= self._cost(self.space.narrow):
            return "nothing is cheaper"
        if len(history.found) == len(self.space.choices) ** len(self.space.variables):
            return "every candidate is evaluated"
        if nothing_new > MOST_DUPLICATES:
            return f"none of {MOST_DUPLICATES} sampled candidates was new and cheaper"
        return None

    def _objective(self, study: Study, evaluated: list[Found]) -> Callable[[Trial], Any]:
        def objective(trial: Trial) -> Any:
            for name, distribution in distributions(self.space).items():
                trial.suggest_categorical(name, distribution.choices)
            chosen = tuple(trial.params[v.name] for v in self.space.variables)
            trial.set_user_attr(OWNER, asdict(Owner.me()))
            self._claim(study, trial)
            cost = self.cost.of(self.space, chosen)
            history = self.history(study)
            if self._hopelessly_dear(cost, history):
                raise TrialPruned(DEARER)
            hopeless = None if chosen == self.space.wide else self._hopeless(history)
            outcome = evaluate(self.runner, chosen, self.columns, hopeless)
            found = self.judged(
                chosen, cost, outcome, trial.number, trial.user_attrs.get("origin", "sampler")
            )
            if found.complete and (
                self.runner.kept is None or (history.best is None or better(found, history.best))
            ):
                self.runner.keep(chosen)
            evaluated.append(found)
            return self._tell(study, trial, found)

        return objective

    def _claim(self, study: Study, trial: Trial) -> None:
        """Two workers may get the same candidate, or more of them a place than there are: the first trial has
        it."""
        others = earlier(study.get_trials(deepcopy=False), trial.number)
        if any(other.params == trial.params for other in others):
            raise TakenError("evaluated already, or just now")
        if self.search.trials is not None and len(others) >= self.search.trials:
            raise TakenError("all places are taken")

    def _hopelessly_dear(self, cost: float, history: History) -> bool:
        if self.search.mode == "accuracy":
            return cost > (self.search.max_cost or 0) + TOLERANCE
        prunes = self.search.mode == "cost" and self.search.prune_p > 0
        return prunes and history.best is not None and cost >= history.best.cost

    def _hopeless(self, history: History) -> Callable[[Outcome], bool] | None:
        """When a candidate is given up: beyond the limit, or behind the best answer, by the test on the rows
        so far."""
        p, best = self.search.prune_p, history.best
        if p == 0 or not self.judge.counts_right or self.search.mode == "pareto":
            return None
        if self.search.mode == "cost":
            return lambda outcome: self.judge.exceeds_p(outcome, self.search.max_drop) < p
        return None if best is None else lambda outcome: self.judge.behind_p(outcome, best.outcomes) < p

    def judged(self, chosen: Choices, cost: float, outcome: Outcome, number: int, origin: str) -> Found:
        """An evaluated candidate."""
        drop = self.judge.drop(outcome)
        low, high, upper95 = self.judge.interval(outcome)
        limited = {"estimate": drop, "bound": upper95}[self.search.decide] <= self.search.max_drop + TOLERANCE
        feasible = {
            "cost": limited,
            "accuracy": cost <= (self.search.max_cost or 0) + TOLERANCE,
            "pareto": True,
        }
        return Found(
            number=number,
            chosen=chosen,
            cost=cost,
            feasible=feasible[self.search.mode] and outcome.complete,
            complete=outcome.complete,
            rows=outcome.rows,
            metric=self.judge.metric(outcome),
            drop=drop,
            low=low,
            high=high,
            upper95=upper95,
            right=Found.packed(self.judge.right(outcome)) if outcome.complete else "",
            origin=origin,
        )

    def _tell(self, study: Study, trial: Trial, found: Found) -> Sequence[float]:
        for name, value in _shown(found).items():
            trial.set_user_attr(name, value)
        excess = self._excess(found)
        for name, value in excess.items():
            trial.set_constraint(name, value)
        if excess:
            study._storage.set_trial_system_attr(trial._trial_id, DASHBOARD, list(excess.values()))
        return self._values(found, excess)

    def _values(self, found: Found, excess: Mapping[str, float]) -> list[float]:
        """The study's objectives. Infeasible candidates are worse than every feasible one, by how far they
        exceed the limits: Optuna's storages and optuna-dashboard take the best value for the best trial,
        whatever its constraints.
        """
        beyond = sum(value for value in excess.values() if value > 0)
        if self.search.mode == "cost":
            return [self.cost.most(self.space) + beyond if beyond else found.cost]
        if self.search.mode == "accuracy":
            return [WORST - beyond if beyond else found.metric]
        return [found.cost, found.metric]

    def _excess(self, found: Found) -> dict[str, float]:
        """Optuna's constraints, each by its name: how far a candidate is beyond a limit, at most 0 within
        it."""
        if self.search.mode == "cost":
            excess = (found.upper95 if self.search.decide == "bound" else found.drop) - self.search.max_drop
            return {"points beyond max_drop": min(excess, 0.0) if found.feasible else max(excess, TOLERANCE)}
        if self.search.mode == "accuracy":
            beyond = found.cost - (self.search.max_cost or 0)
            within = min(beyond, 0.0) if beyond <= TOLERANCE else beyond
            return {"cost beyond max_cost": within, "given up": float(not found.complete)}
        return {}

    def enter_reference(self, study: Study) -> None:
        """The reference ``all16`` is a candidate too, and known already."""
        wide = params(self.space, self.space.wide)
        known = any(trial.params == wide for trial in study.get_trials(deepcopy=False))
        if known or self.search.reference != "all16":
            return
        outcome = Outcome(logits=self.judge.reference, answered=np.ones(len(self.judge.labels), bool))
        cost = self.cost.of(self.space, self.space.wide)
        found = self.judged(self.space.wide, cost, outcome, 0, "reference")
        excess = self._excess(found)
        trial = create_trial(
            state=TrialState.COMPLETE,
            params=wide,
            distributions=distributions(self.space),
            values=self._values(found, excess),
            user_attrs={**_shown(found), "rows": 0},
            system_attrs={DASHBOARD: list(excess.values())} if excess else {},
            constraints=excess,
        )
        study.add_trial(trial)


def better(found: Found, best: Found) -> bool:
    """Whether later candidates will start from this one."""
    return found.feasible and found.cost <= best.cost


def _shown(found: Found) -> dict[str, Any]:
    """A trial's attributes: ``found`` is all that a history needs, the others are for people who look at the
    study."""
    everything = {name: value for name, value in asdict(found).items() if name not in ("number", "chosen")}
    told = {name: everything[name] for name in ("origin", "cost", "metric", "feasible", "complete", "rows")}
    return {**told, "drop_points": found.drop, "found": json.dumps(everything)}
