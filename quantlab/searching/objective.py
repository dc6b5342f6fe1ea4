"""What Optuna gets of an evaluated candidate: objective values, constraints and attributes."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from quantlab.searching.costs import Cost
from quantlab.searching.history import EvaluatedCandidate
from quantlab.searching.judge import Measurement
from quantlab.searching.search_config import Search
from quantlab.searching.space import Choices, Space
from quantlab.searching.study import CANDIDATE, candidate_params, distributions_of
from quantlab.tasks.scores import Score

TOLERANCE = 1e-9  # points: drops are differences of means
DASHBOARD = "constraints"  # where optuna-dashboard reads constraints; Optuna itself reads them by their names
WORST = -1.0  # of all metrics: a correlation can be that low
WORST_LOG = -1e6  # of minus the logarithms of relative scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """Turns measurements into a study's values by the search's mode and limits."""

    search: Search
    space: Space
    cost: Cost
    score: Score  # which the study decides by

    def candidate(
        self, chosen: Choices, measured: Measurement, number: int, origin: str, right: str, complete: bool
    ) -> EvaluatedCandidate:
        """The candidate with its cost, and whether it is within the search's limit."""
        cost = self.cost.of(self.space, chosen)
        within = {
            "cost": self._decisive_drop(measured) <= self.search.max_drop + TOLERANCE,
            "accuracy": cost <= (self.search.max_cost or 0) + TOLERANCE,
            "pareto": True,
        }
        return EvaluatedCandidate(
            number=number,
            chosen=chosen,
            cost=cost,
            feasible=within[self.search.mode] and complete,
            complete=complete,
            measured=measured,
            right=right,
            origin=origin,
        )

    def record(self, study: Study, trial: Trial, candidate: EvaluatedCandidate) -> list[float]:
        """Writes attributes and constraints into a running trial; returns its objective values."""
        for name, value in self._attributes(candidate).items():
            trial.set_user_attr(name, value)
        excess = self._excess(candidate)
        for name, value in excess.items():
            trial.set_constraint(name, value)
        if excess:
            study._storage.set_trial_system_attr(trial._trial_id, DASHBOARD, list(excess.values()))
        return self._values(candidate, excess)

    def finished_trial(self, candidate: EvaluatedCandidate) -> FrozenTrial:
        """A trial of a candidate that needed no evaluation: it has spent no rows."""
        excess = self._excess(candidate)
        return create_trial(
            state=TrialState.COMPLETE,
            params=candidate_params(self.space, candidate.chosen),
            distributions=distributions_of(self.space),
            values=self._values(candidate, excess),
            user_attrs={**self._attributes(candidate), "rows": 0},
            system_attrs={DASHBOARD: list(excess.values())} if excess else {},
            constraints=excess,
        )

    def _decisive_drop(self, measured: Measurement) -> float:
        return measured.upper95 if self.search.decide == "bound" else measured.drop

    def _values(self, candidate: EvaluatedCandidate, excess: Mapping[str, float]) -> list[float]:
        """The study's objectives.

        Infeasible candidates get values worse than every feasible one's, by how far they exceed the limits:
        Optuna's storages and optuna-dashboard call the trial with the best value the best, whatever its
        constraints.
        """
        beyond = sum(value for value in excess.values() if value > 0)
        if self.search.mode == "cost":
            return [self.cost.most(self.space) + beyond if beyond else candidate.cost]
        if self.search.mode == "accuracy":
            return [self._worst - beyond if beyond else self._quality(candidate)]
        return [candidate.cost, self._quality(candidate)]

    def _quality(self, candidate: EvaluatedCandidate) -> float:
        """The metric, the more the better: minus the logarithm of a relative one."""
        metric = candidate.measured.metric
        return max(-math.log(metric), WORST_LOG) if self.score.relative else metric

    @property
    def _worst(self) -> float:
        return WORST_LOG if self.score.relative else WORST

    def _excess(self, candidate: EvaluatedCandidate) -> dict[str, float]:
        """Optuna's constraints by name: how far a candidate exceeds a limit; at most 0 within it."""
        if self.search.mode == "cost":
            excess = self._decisive_drop(candidate.measured) - self.search.max_drop
            within = min(excess, 0.0) if candidate.feasible else max(excess, TOLERANCE)
            return {"loss beyond max_drop": within}
        if self.search.mode == "accuracy":
            beyond = candidate.cost - (self.search.max_cost or 0)
            within = min(beyond, 0.0) if beyond <= TOLERANCE else beyond
            return {"cost beyond max_cost": within, "given up": float(not candidate.complete)}
        return {}

    def _attributes(self, candidate: EvaluatedCandidate) -> dict[str, Any]:
        """A trial's user attributes: ``candidate`` for a :class:`History`, the others for people who look at
        the study."""
        record = {
            name: value for name, value in asdict(candidate).items() if name not in ("number", "chosen")
        }
        shown = {name: record[name] for name in ("origin", "cost", "feasible", "complete")}
        measured = candidate.measured
        return {
            **shown,
            "metric": measured.metric,
            "rows": measured.rows,
            self.score.loss_names.value: measured.drop,
            CANDIDATE: json.dumps(record),
        }
