"""The study: continued, shared by workers, and refused to searches whose results do not compare."""

import json
import os
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import TrialState, create_trial
from searches import MakeLab, SearchLab, evaluated_candidate, search_of, site_costs, space_named

from quantlab.analysis.remedies import _reference
from quantlab.searching.alternatives import OWN
from quantlab.searching.answer_summary import AnswerSummary
from quantlab.searching.evaluate import CandidateOutcomes
from quantlab.searching.history import EvaluatedCandidate, History, pack_rows
from quantlab.searching.judge import Judge, Measurement
from quantlab.searching.objective import Objective
from quantlab.searching.search_config import MODES
from quantlab.searching.search_run import make_worker, open_checked_study
from quantlab.searching.setup import prepared_model
from quantlab.searching.space import Choices
from quantlab.searching.study import (
    candidate_params,
    distributions_of,
    earlier_claims,
    identity_of,
    make_sampler,
    open_study,
)
from quantlab.searching.worker import CandidateTakenError, SearchWorker
from quantlab.storage.memo import Memo
from quantlab.tasks.scores import SCORES
from quantlab.tracking.mlflow import MLflow

SPACE = space_named(["0.x", "1.x", "2.x"], ("int8", "fp16"))
COST = site_costs(SPACE)
IDENTITY = {"space": "s", "checkpoint": "c", "data": "d", "code": "e", "trial config": "t", "goal": "g"}


def study_in(folder: Path, **settings: object) -> Study:
    return open_study(search_of(**settings), SPACE, folder, IDENTITY)


def finish(study: Study, one: EvaluatedCandidate, **attributes: object) -> None:
    """Adds an evaluated candidate to the study as a worker does."""
    text = json.dumps(
        {name: value for name, value in asdict(one).items() if name not in ("number", "chosen")}
    )
    values = [one.cost, one.measured.metric] if len(study.directions) == 2 else [one.cost]
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            params=candidate_params(SPACE, one.chosen),
            distributions=distributions_of(SPACE),
            values=values,
            user_attrs={"rows": one.measured.rows, "candidate": text, **attributes},
        )
    )


def running(study: Study, chosen: Choices, **attributes: object) -> None:
    """Adds a candidate that another worker evaluates."""
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=candidate_params(SPACE, chosen),
            distributions=distributions_of(SPACE),
            user_attrs=attributes,
        )
    )


@pytest.mark.parametrize("storage", ["study.db", "sqlite", "journal"])
def test_a_study_goes_on_where_it_was_left(tmp_path: Path, storage: str) -> None:
    urls = {"study.db": None, "sqlite": f"sqlite:///{tmp_path}/other.db", "journal": f"{tmp_path}/study.log"}
    for count in range(3):
        study = study_in(tmp_path, storage=urls[storage])
        assert len(study.trials) == count
        finish(study, evaluated_candidate(("int8", "fp16", "int8"), 1.0, feasible=True, drop=float(count)))
    assert (
        tmp_path / {"study.db": "study.db", "sqlite": "other.db", "journal": "study.log"}[storage]
    ).is_file()
    assert [one.measured.drop for one in History.of(study, SPACE, "cost").evaluated] == [0, 1, 2]


@pytest.mark.parametrize(
    "differing",
    [
        ["space", "goal"],
        *(pytest.param([name], marks=pytest.mark.slow) for name in IDENTITY),
    ],
)
def test_another_studys_results_are_refused_and_what_differs_is_named(
    tmp_path: Path, differing: list[str]
) -> None:
    study_in(tmp_path)
    other = {**IDENTITY, **dict.fromkeys(differing, "other")}
    with pytest.raises(ValueError, match=f"of another {', another '.join(differing)}: .*another search.name"):
        open_study(search_of(), SPACE, tmp_path, other)
    open_study(search_of(name="another"), SPACE, tmp_path, other)
    assert study_in(tmp_path).user_attrs["identity"] == IDENTITY  # and the first is as it was


DIFFERENT = {
    "space": ["search.sites=['*.ffn.*']"],
    "data": ["evaluation.limit=32"],
    "goal": ["search.max_drop=1"],
    "trial config": ["bits.symmetric=true"],
    "code": [],
}


def test_each_difference_is_found_in_the_config(
    planted: SearchLab, make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_checked_study(planted.config(), tmp_path, Memo())
    (path,) = [o for o in make_lab((1,)).overrides if o.startswith("model.path")]
    for differing, overrides in {**DIFFERENT, "checkpoint": [path]}.items():
        with monkeypatch.context() as patch:
            if differing == "code":
                patch.setattr("quantlab.searching.search_run.code_digest", lambda: "other code")
            with pytest.raises(ValueError, match=f"of another .*{differing}"):
                open_checked_study(planted.config(*overrides), tmp_path, Memo())


def test_what_changes_no_number_is_no_other_study(planted: SearchLab, tmp_path: Path) -> None:
    more = [
        "search.budget=100",
        "search.trials=3",
        "search.sampler=tpe",
        "search.seed=9",
        "search.reuse_mb=0",
    ]
    open_checked_study(planted.config(), tmp_path, Memo())
    open_checked_study(
        planted.config(*more, "search.worker=2", "search.prune_p=0", "search.seeded=false"), tmp_path, Memo()
    )


def test_choices_in_another_order_are_the_same_space() -> None:
    spaces = [search_of(choices=order) for order in (("int8", "fp16"), ("fp16", "int8"))]
    found = [identity_of(search, SPACE, "c", "d", "e", "t") for search in spaces]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://u:secret@127.0.0.1:1/x",
        "postgresql://u:secret@127.0.0.1:1/x",
        "sqlite:////nowhere/at/all/study.db",
        "/nowhere/at/all/study.log",
        "nonsense://u:secret@127.0.0.1/x",
        "mysql+nothing://u:secret@h/x",
    ],
)
def test_a_storage_that_cannot_be_reached_is_named_at_once_without_its_password(
    tmp_path: Path, url: str
) -> None:
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="the study's storage .* cannot be used") as raised:
        study_in(tmp_path, storage=url)
    assert time.perf_counter() - start < 10
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None and "\n" not in str(raised.value)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_journal_that_was_cut_short_goes_on(tmp_path: Path, cut: int) -> None:
    journal = tmp_path / "study.log"
    os.symlink("nowhere", f"{journal}.lock")  # what a killed process leaves of Optuna's own lock
    study = study_in(tmp_path, storage=str(journal))
    for drop in (0.0, 1.0):
        finish(study, evaluated_candidate(SPACE.wide, 1.0, feasible=True, drop=drop))
    os.truncate(journal, journal.stat().st_size - cut)
    for drop in (2.0, 3.0):  # a third start, too, reads what the second has written
        study = study_in(tmp_path, storage=str(journal))
        finish(study, evaluated_candidate(SPACE.wide, 1.0, feasible=True, drop=drop))
    assert [one.measured.drop for one in History.of(study, SPACE, "cost").evaluated] == [0, 2, 3]


def test_a_broken_line_of_a_journal_is_named(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    study_in(tmp_path, storage=str(journal))
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + lines[1][:9] + "".join(lines[1:]))  # half a record, and another behind it
    with pytest.raises(ValueError, match=r"study.log, line 2 is broken .*head -n 1") as caught:
        study_in(tmp_path, storage=str(journal))
    assert "\n" not in str(caught.value)


def test_one_database_for_runs_and_study_is_refused_before_it_is_made(
    planted: SearchLab, tmp_path: Path
) -> None:
    file = tmp_path / "one.db"
    config = planted.config(f"search.storage=sqlite:///{file}")
    tracking = MLflow(uri=str(file), experiment="tests")
    with pytest.raises(
        ValueError, match="search.storage and tracking.uri are one database, .*: give them two$"
    ):
        open_checked_study(replace(config, tracking=tracking), tmp_path, Memo())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings, variables, kind",
    [
        ({"sampler": "auto"}, 3, GPSampler),
        ({"sampler": "auto"}, 30, TPESampler),
        ({"sampler": "auto", "trials": 200}, 3, TPESampler),
        ({"sampler": "auto", "mode": "pareto"}, 3, NSGAIISampler),
        ({"sampler": "tpe"}, 3, TPESampler),
        ({"sampler": "gp", "budget": 1000}, 30, GPSampler),
        ({"sampler": "nsga2"}, 3, NSGAIISampler),
        ({"sampler": "random", "mode": "pareto"}, 3, RandomSampler),
    ],
)
@pytest.mark.parametrize("storage", ["study.db", "study.log"])
def test_who_is_asked(
    tmp_path: Path, settings: dict[str, object], variables: int, kind: type, storage: str
) -> None:
    space = space_named([f"{index}.x" for index in range(variables)], ("int8", "fp16"))
    url = None if storage == "study.db" else f"{tmp_path}/study.log"
    assert type(open_study(search_of(**settings, storage=url), space, tmp_path, IDENTITY).sampler) is kind


def test_workers_draw_different_candidates_and_the_same_worker_the_same() -> None:
    space = space_named([f"{index}.x" for index in range(20)], ("int8", "fp16"))

    def drawn(worker: int) -> list[object]:
        study = optuna.create_study(sampler=make_sampler(search_of(worker=worker, sampler="random"), space))
        return [tuple(study.ask(distributions_of(space)).params.values()) for _ in range(3)]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("count", [1, 7, 8, 64, 1001])
def test_outcomes_are_packed_and_unpacked(count: int) -> None:
    right = np.random.default_rng(count).random(count) < 0.5
    one = evaluated_candidate(SPACE.wide, 3.0, feasible=True, rows=count)
    assert (replace(one, right=pack_rows(right)).right_rows == right).all()


def test_what_is_best_closest_and_in_front(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    rows = [  # cost, drop, feasible, complete
        (3.0, 0.0, True, True),
        (2.0, 1.0, True, True),
        (2.0, 0.5, True, True),
        (1.0, 9.0, False, True),
        (0.0, -5.0, False, False),
        (2.0, 0.5, True, True),
        (1.0, 3.0, False, True),
        (3.0, 0.2, True, True),
    ]
    for cost, drop, feasible, complete in rows:
        finish(study, evaluated_candidate(SPACE.wide, cost, feasible, drop=drop, complete=complete))
    histories = {mode: History.of(study, SPACE, mode) for mode in MODES}
    assert histories["cost"].best.number == 2  # type: ignore[union-attr]
    assert histories["accuracy"].best.number == 0  # type: ignore[union-attr]
    assert histories["cost"].closest.number == 0  # type: ignore[union-attr]
    assert [(one.cost, one.measured.drop) for one in histories["cost"].front] == [
        (1.0, 3.0),
        (2.0, 0.5),
        (3.0, 0.0),
    ]
    assert histories["cost"].rows == 8 * len(rows)


def test_what_runs_or_waits_is_pending(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    finish(study, evaluated_candidate(SPACE.wide, 3.0, feasible=True))
    study.enqueue_trial(candidate_params(SPACE, ("int8", "fp16", "fp16")))
    assert History.of(study, SPACE, "cost").pending == {("int8", "fp16", "fp16")}
    running(study, SPACE.narrow)
    assert History.of(study, SPACE, "cost").pending == {("int8", "fp16", "fp16"), SPACE.narrow}
    assert History.of(study, SPACE, "cost").running == 1


def measurement(drop: float, metric: float | None = None) -> Measurement:
    metric = 1 - drop / 100 if metric is None else metric
    return Measurement(rows=8, metric=metric, drop=drop, low=40.0, high=60.0, upper95=58.0)


def worker(**settings: object) -> SearchWorker:
    class NoRunner:
        kept: Choices | None = None

        def keep(self, chosen: Choices) -> None:
            self.kept = chosen

    class Half:
        """A judge of candidates that have four of eight rows right."""

        labels, counts_right, score = np.zeros(8), True, SCORES["accuracy"]
        measure = staticmethod(lambda _: measurement(50.0, 0.5))
        right = staticmethod(lambda _: np.arange(8) < 4)
        exceeds_p = staticmethod(lambda *_: 0.001)

    return SearchWorker(
        search=search_of(**{"reference": "fp32", "seeded": False, "trials": 3, **settings}),
        space=SPACE,
        cost=COST,
        runner=NoRunner(),
        columns=[0, 1],
        judge=Half(),
        losses={},
        whole=8,  # type: ignore[arg-type]
    )


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Choices]:
    """Replaces the evaluation by one that answers all rows; returns the list of evaluated candidates."""
    seen: list[Choices] = []

    def evaluate(_: object, chosen: Choices, *__: object) -> CandidateOutcomes:
        seen.append(chosen)
        return CandidateOutcomes(logits=np.zeros((8, 2), np.float32), answered=np.ones(8, bool))

    monkeypatch.setattr("quantlab.searching.worker.evaluate_candidate", evaluate)
    return seen


@pytest.mark.parametrize("name, column", [("accuracy", "drop_points"), ("perplexity", "loss_percent")])
def test_tables_runs_and_trials_call_a_loss_by_its_unit(name: str, column: str) -> None:
    one = evaluated_candidate(SPACE.wide, 1.0, feasible=True, drop=5.0)
    task = SimpleNamespace(metrics=(name,))
    judge = Judge(task=task, labels=np.zeros(2, int), reference=np.ones((2, 3)))  # type: ignore[arg-type]
    objective = Objective(search=search_of(), space=SPACE, cost=COST, score=judge.score)
    trials = (objective.finished_trial(one),)
    held_out = {trials[0].number: one.measured}
    history = History(space=SPACE, mode="cost", trials=trials, setup_rows=0, held_out=held_out)
    config = SimpleNamespace(task=task)
    summary = AnswerSummary(config=config, space=SPACE, cost=COST, sites=(), whole=8, choosing=8)  # type: ignore[arg-type]
    row, metrics, attributes = summary.row(one), summary.metrics(history), trials[0].user_attrs
    assert row[column] == metrics[f"best_{column}"] == metrics[f"held_out_{column}"] == 5
    assert attributes[column] == 5 and _reference(judge, 3)[column] == 0
    names = [*row, *metrics, *attributes, *_reference(judge, 3)]
    assert any("points" in each for each in names) == (name == "accuracy")


def test_of_two_workers_with_one_candidate_the_first_has_it(tmp_path: Path, evaluated: list[Choices]) -> None:
    study, chosen = study_in(tmp_path), ("int8", "fp16", "int8")
    running(study, chosen)
    study.enqueue_trial(candidate_params(SPACE, chosen))
    study.optimize(worker()._evaluating(study, []), n_trials=1, catch=(CandidateTakenError,))
    assert not evaluated and study.trials[1].state == TrialState.FAIL
    study.enqueue_trial(candidate_params(SPACE, ("fp16", "fp16", "int8")))
    study.optimize(worker()._evaluating(study, []), n_trials=1, catch=(CandidateTakenError,))
    assert evaluated == [("fp16", "fp16", "int8")]
    assert [trial.number for trial in earlier_claims(study.trials, 2)] == [0]


def test_a_later_one_takes_nothing_from_the_first(tmp_path: Path) -> None:
    study = study_in(tmp_path)

    def objective(trial: optuna.Trial) -> float:
        for name, distribution in distributions_of(SPACE).items():
            trial.suggest_categorical(name, distribution.choices)
        for _ in range(2):
            running(study, tuple(trial.params.values()))
        worker()._claim(study, trial)
        return 0.0

    study.optimize(objective, n_trials=1)
    assert study.trials[0].state == TrialState.COMPLETE


def test_no_more_candidates_than_places(tmp_path: Path, evaluated: list[Choices]) -> None:
    study = study_in(tmp_path)
    for _ in range(3):
        running(study, SPACE.wide)
    study.optimize(worker(trials=3)._evaluating(study, []), n_trials=1, catch=(CandidateTakenError,))
    assert not evaluated and study.trials[-1].state == TrialState.FAIL


def test_no_candidate_is_evaluated_twice_and_the_space_may_be_used_up(
    tmp_path: Path, evaluated: list[Choices], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlab.searching.worker.MOST_DUPLICATES", 40)
    reason = worker(trials=None, budget=100, max_drop=0.0).work(study_in(tmp_path), lambda *_: None)
    assert reason == "every candidate is evaluated"
    assert len(evaluated) == len(set(evaluated)) == 8


def test_a_candidate_as_dear_as_the_best_is_not_answered(tmp_path: Path, evaluated: list[Choices]) -> None:
    worker(trials=None, budget=100, max_drop=60.0).work(study_in(tmp_path), lambda *_: None)
    costs = [COST.of(SPACE, chosen) for chosen in evaluated]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)
    assert costs[-1] == 0  # nothing is cheaper


@pytest.mark.parametrize("mode", ["cost", "accuracy"])
def test_the_best_trial_of_the_study_is_the_best_answer_for_other_tools_too(
    tmp_path: Path, evaluated: list[Choices], mode: str
) -> None:
    """optuna-dashboard takes the best value of the storage, and constraints as a list without names."""
    limits = {"cost": {"max_drop": 2.0}, "accuracy": {"max_cost": 2.0}}[mode]
    one = worker(mode=mode, reference="all16", trials=None, **limits)
    drops = {
        SPACE.wide: 0.0,
        ("int8", "fp16", "fp16"): 1.0,
        ("int8", "int8", "fp16"): 5.0,
        SPACE.narrow: 50.0,
    }
    object.__setattr__(one.judge, "reference", np.zeros((8, 2)))
    object.__setattr__(
        one.judge, "measure", lambda _: measurement(drops[evaluated[-1]] if evaluated else 0.0)
    )
    study = study_in(tmp_path, mode=mode, **limits)
    one.enter_reference(study)
    for chosen in list(drops)[1:]:
        study.enqueue_trial(candidate_params(SPACE, chosen))
        study.optimize(one._evaluating(study, []), n_trials=1)
    best = study._storage.get_best_trial(study._study_id)
    assert tuple(best.params.values()) == ("int8", "fp16", "fp16")
    assert best.number == study.best_trial.number == one.history(study).best.number  # type: ignore[union-attr]
    feasible = [all(value <= 0 for value in trial.system_attrs["constraints"]) for trial in study.trials]
    assert feasible == [trial.user_attrs["feasible"] for trial in study.trials]
    assert feasible == {"cost": [True, True, False, False], "accuracy": [False, True, True, True]}[mode]
    assert all(max(trial.constraints.values()) <= 0 for trial in study.trials if trial.user_attrs["feasible"])
    assert study.trials[1].user_attrs["drop_points"] == 1 and study.trials[1].user_attrs["cost"] == 2
    names = {
        "cost": "16-bit sites (beyond max_drop: the most of these, and the loss beyond)",
        "accuracy": "metric",
    }
    assert study.metric_names == [names[mode]]


def test_an_interrupted_candidate_is_tried_again(
    tmp_path: Path, evaluated: list[Choices], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate that was evaluated at Ctrl-C is proposed again first."""
    losses = {"kl": {(v.name, "int8"): float(index + 1) for index, v in enumerate(SPACE.variables)}}
    study, seeded = study_in(tmp_path), worker(seeded=True, trials=None, budget=100, max_drop=60.0)
    object.__setattr__(seeded, "losses", {OWN: losses})
    first = seeded.propose(seeded.history(study))
    assert first is not None

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("quantlab.searching.worker.evaluate_candidate", interrupt)
        seeded.work(study, lambda *_: None)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    seeded.work(study_in(tmp_path), lambda *_: None)
    assert evaluated[0] == first[1]


def test_a_worker_that_was_killed_before_it_signed_holds_no_place(
    tmp_path: Path, evaluated: list[Choices]
) -> None:
    """Without owner and heartbeat, Optuna itself would leave such a trial running for ever."""
    study = study_in(tmp_path, heartbeat_s=1)
    running(study, ("int8", "fp16", "int8"))
    study.add_trial(create_trial(state=TrialState.RUNNING))  # nothing suggested yet
    time.sleep(2.2)
    worker(trials=8, max_drop=0.0, heartbeat_s=1).work(study_in(tmp_path, heartbeat_s=1), lambda *_: None)
    assert len(evaluated) == len(set(evaluated)) == 8


@pytest.mark.parametrize("storage", ["sqlite", pytest.param("journal", marks=pytest.mark.slow)])
def test_a_killed_workers_candidate_is_tried_again(
    tmp_path: Path, evaluated: list[Choices], storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = None if storage == "sqlite" else f"{tmp_path}/study.log"
    study, chosen = study_in(tmp_path, storage=url, heartbeat_s=1), ("int8", "fp16", "int8")
    if storage == "sqlite":
        running(study, chosen)  # on another machine; and then nothing
        study._storage.record_heartbeat(study.trials[0]._trial_id)  # type: ignore[attr-defined]
        time.sleep(3.2)
    else:  # which has no heartbeats: a worker of this machine is seen to be gone
        (tmp_path / "worker.lock").touch()
        running(study, chosen, owner={"host": platform.node(), "lock": f"{tmp_path}/worker.lock"})
    monkeypatch.setattr("quantlab.searching.worker.MOST_DUPLICATES", 40)
    worker(trials=8, max_drop=0.0).work(study_in(tmp_path, storage=url, heartbeat_s=1), lambda *_: None)
    assert chosen in evaluated and len(evaluated) == len(set(evaluated)) == 8


def test_rows_of_the_setup_are_counted_once_however_many_workers_there_are(
    planted: SearchLab, tmp_path: Path
) -> None:
    config = planted.config("search.group_by=layer")
    rows = []
    for _ in range(2):
        study = open_checked_study(config, tmp_path, Memo())
        with prepared_model(config, Memo()) as prepared:
            make_worker(prepared, study, tmp_path)
        rows.append(History.of(study, prepared.space, "cost").rows)
    (reference,) = study.get_trials()
    assert (
        reference.user_attrs["rows"] == 0
        and json.loads(reference.user_attrs["candidate"])["origin"] == "reference"
    )
    assert rows[0] == rows[1] == 64 + 16 * (1 + 3 + 1 + len(prepared.space.variables))
