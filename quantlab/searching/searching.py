"""A search from its first line to its answer, recorded on the way."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.study import Study
from optuna.trial import TrialState

from quantlab.cli.console import plain_console
from quantlab.cli.secrets import without_password
from quantlab.results.store import locked_folder
from quantlab.searching.budget import Budget
from quantlab.searching.history import Found, History
from quantlab.searching.scores import Scores, measured
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.setup import Bench, bench, checked
from quantlab.searching.solution import Reporter, draw_scores
from quantlab.searching.space import Space
from quantlab.searching.study import count_setup, identity_of, keep_measured, open_study, storage_url
from quantlab.searching.worker import Worker
from quantlab.storage.files import code_digest, digest, whole_folder
from quantlab.storage.memo import Memo
from quantlab.tracking.mlflow import MLflow
from quantlab.tracking.tracker import Entry, Outcome, Run
from quantlab.trial.key import deciding_environment, deciding_settings
from quantlab.trial.material import resolve_checkpoint, select_rows
from quantlab.trial.result import plain_data
from quantlab.trial.trial import plain_config, trial_timing_key

PARENT = "run of the search"
GOAL = (
    "sites",
    "choices",
    "group_by",
    "mode",
    "max_drop",
    "max_cost",
    "decide",
    "reference",
    "cost",
)  # of the study
ATTACHED = ("best.json", "front.csv", "candidates.csv", "method.yaml", "map.png", "progress.png")
SCORED = ("scores/scores.csv", "scores/scores.png")
PREDICTORS = ("kl", "first_order")  # the better one first; noise says nothing of what comes after a site


def run_search(config: SearchConfig, folder: Path, memo: Memo) -> float | None:
    """Works on the study as one worker. Returns the best cost, or None where no answer is within the
    limit."""
    console = plain_console()
    folder.mkdir(parents=True, exist_ok=True)
    study = opened(config, folder, memo)
    evaluated = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
    console.print(f"search {config.search.name}: {evaluated} candidates evaluated before; {folder}")
    with ExitStack() as stack:
        run = stack.enter_context(_leading(config, study, folder))
        ready = stack.enter_context(bench(config, memo))
        console.print(str(ready.budget))
        worker = made(ready, study, folder)
        reporter = Reporter(
            config=config,
            space=ready.space,
            cost=worker.cost,
            sites=ready.material.sites,
            total=worker.whole,
            choosing=len(worker.judge.labels),
            folder=folder,
        )

        def after(history: History, found: Found) -> None:
            reporter.write(history)
            _record(config, study, reporter, history, found)
            console.print(_progress(history, found, reporter))

        study.set_user_attr("goal", reporter.goal())
        if run is not None:  # what a worker had no time to record before it was killed
            history = worker.history(study)
            reporter.write(history)
            for found in history.found:
                _record(config, study, reporter, history, found)

        reason = "it was interrupted"
        try:
            reason = worker.work(study, after)
            if run is not None:
                measure_answer(ready, study, worker.history(study))
        finally:
            history = worker.history(study)
            reporter.write(history)
            reporter.draw(history)
            console.print("\n".join(reporter.text(history, reason)))
            if run is not None:
                files = tuple(name for name in (*ATTACHED, *SCORED) if (folder / name).is_file())
                tags = {"goal": reporter.goal(), **_way(config)}
                run.log(Outcome(metrics=reporter.metrics(history), tags=tags, files=files))
    return history.best.cost if history.best else None


def opened(config: SearchConfig, folder: Path, memo: Memo) -> Study:
    """The study, made or continued; everything that can be wrong is found before anything is loaded.

    Raises ValueError where the budget leaves no row for candidates.
    """
    _require_two_databases(config, folder)
    _, space = checked(config, memo)
    train, examples, data = select_rows(config.task, config.evaluation, memo)
    held_out = config.evaluation.held_out(examples.labels)
    Budget.of(config.search, space, len(examples), int((~held_out).sum()), len(train)).check()
    fingerprint = resolve_checkpoint(config.model, config.task, memo).fingerprint
    shared = (fingerprint, digest([data, held_out.tobytes().hex()]))
    return open_study(config.search, space, folder, _identity(config, space, *shared))


def _identity(config: SearchConfig, space: Space, checkpoint: str, data: str) -> dict[str, str]:
    """What the study's numbers depend on; where it weighs latencies, on the processor and the profile too."""
    trial = json.dumps(deciding_settings(plain_config(config)), sort_keys=True, default=str)
    surroundings = deciding_environment(config.model.torch_device())
    timing = trial_timing_key(config) if config.search.cost == "latency" else ""
    return {
        **identity_of(config.search, space, checkpoint, data, code_digest(), trial),
        "environment": digest([repr(sorted(surroundings.items()))]),
        **({"processor or profile": timing} if timing else {}),
    }


def _require_two_databases(config: SearchConfig, folder: Path) -> None:
    """MLflow and Optuna keep their versions in a table of one name: the second to open a database damages
    it."""
    url = storage_url(config.search.storage, folder)
    if isinstance(config.tracking, MLflow) and without_password(url) == config.tracking.address:
        raise ValueError(
            f"search.storage and tracking.uri are one database, {without_password(url)}: give them two"
        )


def measure_answer(ready: Bench, study: Study, history: History) -> None:
    """Answers the rows that chose nothing with the search's answer and its reference, once for each
    answer."""
    answer = history.answer
    if answer is None or answer.number in history.measured:
        return
    measured = ready.measured(answer.chosen)
    if measured is not None:
        keep_measured(study, answer.number, asdict(measured))


def made(ready: Bench, study: Study, folder: Path) -> Worker:
    """A worker, with reference and scores: the scores are computed by whoever comes first, and kept in the
    folder."""
    runner, search = ready.runner(ready.choosing), ready.config.search
    losses = {}
    if search.seeded:
        scores = kept_scores(ready, study, folder / "scores")
        losses = {score: scores.of(score) for score in PREDICTORS}
    judge, rows = ready.judge(runner, ready.choosing)
    worker = Worker(
        search=search,
        space=ready.space,
        cost=ready.cost(),
        runner=runner,
        judge=judge,
        losses=losses,
        columns=list(ready.material.loaded.label_columns),
        whole=ready.budget.whole,
    )
    with locked_folder(folder / "reference", "the reference", wait=True):
        count_setup(study, "reference", rows)
        count_setup(study, "answer", ready.budget.answer)
        worker.enter_reference(study)
    return worker


def measure_sensitivity(config: SearchConfig, folder: Path, memo: Memo) -> Scores:
    """All scores, the measured loss of accuracy included, in ``folder`` and in MLflow."""
    entry = Entry(
        identity=uuid.uuid4().hex, name=f"sensitivity {config.search.name}", params=config.params(), tags={}
    )
    folder.mkdir(parents=True, exist_ok=True)
    with config.tracking.start(entry, folder) as run, bench(config, memo) as ready:
        runner = ready.runner()
        judge, _ = ready.judge(runner)
        scores = measured(ready.scores(), ready.space, runner, ready.material.loaded.label_columns, judge)
        save(scores, folder)
        correlations = scores.correlations()
        correlations.to_csv(folder / "correlations.csv", index=False)
        metrics = dict(zip("spearman_" + correlations["score"], correlations["spearman"], strict=True))
        run.log(Outcome(metrics=metrics, tags={}, files=("scores.csv", "scores.png", "correlations.csv")))
    return scores


def kept_scores(ready: Bench, study: Study, folder: Path) -> Scores:
    """The scores from the folder, or computed and put there."""
    with locked_folder(folder.parent / "scoring", "the scores", wait=True):
        if not folder.is_dir():
            scores = ready.scores()
            count_setup(study, "scores", sum(scores.rows.values()))
            with whole_folder(folder) as scratch:
                save(scores, scratch)
        table = pd.read_csv(folder / "scores.csv")
        table["choice"] = [_as_chosen(choice, ready.space.choices) for choice in table["choice"]]
        costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    return Scores(table=table, rows=costs["rows"], seconds=costs["seconds"])


def save(scores: Scores, folder: Path) -> None:
    """``scores.csv``, ``scores.png``, and what they cost."""
    scores.table.to_csv(folder / "scores.csv", index=False)
    (folder / "costs.json").write_text(
        json.dumps({"rows": scores.rows, "seconds": scores.seconds}), encoding="utf-8"
    )
    draw_scores(scores).savefig(folder / "scores.png", dpi=150)


@contextmanager
def _leading(config: SearchConfig, study: Study, folder: Path) -> Iterator[Run | None]:
    """The search's own record, of whichever worker holds the folder; the others' candidates go under it."""
    identity = f"search/{study.study_name}/{study.user_attrs['identity']['code'][:8]}"
    params = {f"search.{name}": plain_data(getattr(config.search, name)) for name in GOAL}
    entry = Entry(
        identity=identity,
        name=config.search.name,
        params={**config.params(), **params},
        tags={"search": identity},
    )
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(folder, f"search {config.search.name}", wait=False))
        except BlockingIOError:
            yield None
            return
        run = stack.enter_context(config.tracking.start(entry, folder))
        study.set_user_attr(PARENT, run.id)
        yield run
    if run.problem:
        raise ConnectionError(
            f"the search's answer is in {folder}, but was not recorded: {run.problem}; send it later with "
            f"python -m quantlab.sync {folder}"
        )


def _way(config: SearchConfig) -> dict[str, str]:
    """How the study was searched, which may be another way each time that it goes on. No password of a
    storage."""
    names = (field.name for field in fields(config.search) if field.name not in (*GOAL, "storage"))
    return {f"search.{name}": str(getattr(config.search, name)) for name in names}


def _record(config: SearchConfig, study: Study, reporter: Reporter, history: History, found: Found) -> None:
    """An evaluated candidate is a run of its own under the search's, there as soon as it is evaluated, and
    once."""
    entry = Entry(
        identity=f"search/{study.study_name}/{study.user_attrs['identity']['code'][:8]}/{found.number}",
        name=f"candidate {found.number}",
        params={"origin": found.origin},
        tags={"search": study.study_name},
        parent=study.user_attrs.get(PARENT),
    )
    metrics = {
        "cost": found.cost,
        "metric": found.metric,
        "drop_points": found.drop,
        "rows": float(found.rows),
        "complete": float(found.complete),
        **reporter.metrics(history),
    }
    config.tracking.replay(entry, reporter.folder, Outcome(metrics=metrics, tags={}, files=ATTACHED[:2]))


def _progress(history: History, found: Found, reporter: Reporter) -> str:
    best = history.best
    shown = "all rows" if found.complete else f"given up after {found.rows} rows"
    so_far = f"best {best.cost:g}" if best else "none within the limit yet"
    spent = f"[{history.rows / reporter.total:5.2f}]"
    return (
        f"{spent} {found.origin}: {found.cost:g} {reporter.cost.unit}, {found.drop:+.2f} points, "
        f"{shown}; {so_far}"
    )


def _as_chosen(text: Any, choices: tuple[Any, ...]) -> Any:
    return next(choice for choice in choices if str(choice) == str(text))
