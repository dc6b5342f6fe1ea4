"""Runs a search from its config to its answer, and the measurement of sensitivity."""

import json
import uuid
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from optuna.study import Study
from optuna.trial import TrialState

from quantlab.cli.console import plain_console
from quantlab.cli.secrets import without_password
from quantlab.results.store import locked_folder
from quantlab.searching.answer_summary import AnswerSummary, wrapped
from quantlab.searching.budget import Budget
from quantlab.searching.history import EvaluatedCandidate, History
from quantlab.searching.proposals import Losses
from quantlab.searching.score_files import kept_scores, save_scores
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.search_files import SearchFiles
from quantlab.searching.search_tracking import record_candidate, record_search, search_run_of
from quantlab.searching.setup import PreparedModel, checked_space, prepared_model
from quantlab.searching.site_scores import Scores, with_measured_loss
from quantlab.searching.space import Space
from quantlab.searching.study import count_setup, identity_of, keep_held_out, open_study, storage_url
from quantlab.searching.worker import SearchWorker
from quantlab.storage.files import code_digest, digest
from quantlab.storage.memo import Memo
from quantlab.sweeping.summary import print_places
from quantlab.tracking.mlflow import MLflow
from quantlab.tracking.tracker import RunEntry, RunOutcome
from quantlab.trial.config import plain_config
from quantlab.trial.environment import deciding_environment
from quantlab.trial.key import deciding_settings, trial_timing_key
from quantlab.trial.material import resolve_checkpoint, select_rows

PREDICTORS = ("kl", "first_order")  # the better one first; noise ignores what comes after the site


def run_search(config: SearchConfig, folder: Path, memo: Memo) -> float | None:
    """Works on the study as one worker, writes the search's files into ``folder`` and records them.

    Returns the best cost, or None if no candidate is within the limit.
    """
    console = plain_console()
    folder.mkdir(parents=True, exist_ok=True)
    study = open_checked_study(config, folder, memo)
    evaluated = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
    console.print(f"search {config.search.name}: {evaluated} candidates evaluated before; {folder}")
    with ExitStack() as stack:
        run = stack.enter_context(search_run_of(config, study, folder))
        prepared = stack.enter_context(prepared_model(config, memo))
        console.print("\n".join(wrapped(str(prepared.budget))))
        worker = make_worker(prepared, study, folder)
        summary = answer_summary_of(prepared, worker)
        files = SearchFiles(summary=summary, folder=folder)

        def after(history: History, candidate: EvaluatedCandidate) -> None:
            files.write(history)
            record_candidate(config, study, summary, history, candidate, folder)
            console.print("\n".join(wrapped(summary.progress(history, candidate))))

        study.set_user_attr("goal", summary.goal())
        if run is not None:  # candidates that a killed worker evaluated and did not record
            history = worker.history(study)
            files.write(history)
            for candidate in history.evaluated:
                record_candidate(config, study, summary, history, candidate, folder)

        reason = "it was interrupted"
        try:
            reason = worker.work(study, after)
            if run is not None:
                measure_answer(prepared, study, worker.history(study))
        finally:
            history = worker.history(study)
            files.write(history)
            files.draw(history)
            console.print("\n".join([*summary.text(history, reason), *files.text(history)]))
            if run is not None:
                record_search(run, config, summary, history, folder)
                print_places(console, {"MLflow": config.tracking.run_page(run.id)})
    return history.best.cost if history.best else None


def open_checked_study(config: SearchConfig, folder: Path, memo: Memo) -> Study:
    """Creates or continues the study, after checking all that can be checked without loading a model.

    Raises ValueError if settings contradict each other or the budget leaves no row for candidates.
    """
    _require_two_databases(config, folder)
    _, space = checked_space(config, memo)
    rows = select_rows(config.trained, config.task, config.evaluation, memo)
    held_out = config.evaluation.held_out(rows.evaluation.labels, rows.evaluation.clusters)
    choosing = int((~held_out).sum())
    Budget.of(config.search, space, len(rows.evaluation), choosing, len(rows.train)).check()
    fingerprint = resolve_checkpoint(config.trained, config.task, memo).fingerprint
    shared = (fingerprint, digest([rows.fingerprint, held_out.tobytes().hex()]))
    return open_study(config.search, space, folder, _identity(config, space, *shared))


def _identity(config: SearchConfig, space: Space, checkpoint: str, data: str) -> dict[str, str]:
    """What the study's numbers depend on; processor and profile too with ``search.cost=latency``."""
    parts = [deciding_settings(plain_config(config.of(slots))) for slots in space.alternatives]
    trial = json.dumps(parts if space.decides_slots else parts[0], sort_keys=True, default=str)
    surroundings = deciding_environment(config.trained.torch_device())
    timing = trial_timing_key(config) if config.search.cost == "latency" else ""
    return {
        **identity_of(config.search, space, checkpoint, data, code_digest(), trial),
        "environment": digest([repr(sorted(surroundings.items()))]),
        **({"processor or profile": timing} if timing else {}),
    }


def _require_two_databases(config: SearchConfig, folder: Path) -> None:
    """MLflow and Optuna both keep their schema's version in a table ``alembic_version``: the second one to
    open a shared database damages it."""
    url = storage_url(config.search.storage, folder)
    if isinstance(config.tracking, MLflow) and without_password(url) == config.tracking.address:
        raise ValueError(
            f"search.storage and tracking.uri are one database, {without_password(url)}: give them two"
        )


def measure_answer(prepared: PreparedModel, study: Study, history: History) -> None:
    """Measures the answer on the rows that chose nothing, and records it in the study; once for an answer."""
    answer = history.answer
    if answer is None or answer.number in history.held_out:
        return
    measured = prepared.measure_held_out(answer.chosen)
    if measured is not None:
        keep_held_out(study, answer.number, asdict(measured))


def make_worker(prepared: PreparedModel, study: Study, folder: Path) -> SearchWorker:
    """A worker with the reference's answers and the scores, which the study's first worker computes."""
    runner, search = prepared.runner(prepared.choosing), prepared.config.search
    losses: dict[str, dict[str, Losses]] = {}
    if search.seeded:
        scores = kept_scores(prepared, study, folder / "scores")
        losses = {
            slots: {score: scores.of(score, slots) for score in PREDICTORS}
            for slots in prepared.space.alternatives
        }
    judge, rows = prepared.judge(runner, prepared.choosing)
    worker = SearchWorker(
        search=search,
        space=prepared.space,
        cost=prepared.cost(),
        runner=runner,
        judge=judge,
        losses=losses,
        columns=prepared.label_columns,
        whole=prepared.budget.whole,
    )
    with locked_folder(folder / "reference", "the reference", wait=True):
        count_setup(study, "reference", rows)
        count_setup(study, "answer", prepared.budget.answer)
        worker.enter_reference(study)
    return worker


def answer_summary_of(prepared: PreparedModel, worker: SearchWorker) -> AnswerSummary:
    """Describes the answers of a worker's study."""
    return AnswerSummary(
        config=prepared.config,
        space=prepared.space,
        cost=worker.cost,
        sites=prepared.material.sites,
        whole=worker.whole,
        choosing=len(worker.judge.labels),
    )


def measure_sensitivity(config: SearchConfig, folder: Path, memo: Memo) -> Scores:
    """Computes all scores and the measured loss of accuracy, writes them into ``folder`` and records them."""
    entry = RunEntry(
        identity=uuid.uuid4().hex, name=f"sensitivity {config.search.name}", params=config.params(), tags={}
    )
    config.require_one()
    folder.mkdir(parents=True, exist_ok=True)
    with config.tracking.start(entry, folder) as run, prepared_model(config, memo) as prepared:
        runner = prepared.runner()
        judge, _ = prepared.judge(runner)
        columns = prepared.label_columns
        scores = with_measured_loss(prepared.scores(), prepared.space, runner, columns, judge)
        save_scores(scores, folder)
        correlations = scores.correlations()
        correlations.to_csv(folder / "correlations.csv", index=False)
        metrics = dict(zip("spearman_" + correlations["score"], correlations["spearman"], strict=True))
        run.log(RunOutcome(metrics=metrics, tags={}, files=("scores.csv", "scores.png", "correlations.csv")))
    return scores
