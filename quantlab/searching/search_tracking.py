"""Records a search in the tracker: one run for the search, one below it for every candidate."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

from optuna.study import Study

from quantlab.results.store import locked_folder
from quantlab.searching.answer_summary import AnswerSummary
from quantlab.searching.history import EvaluatedCandidate, History
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.search_files import (
    BEST,
    CANDIDATES,
    FRONT,
    MAP,
    METHOD,
    PROGRESS,
    SCORES_PICTURE,
    SCORES_TABLE,
)
from quantlab.tracking.tracker import Run, RunEntry, RunOutcome
from quantlab.trial.result import plain_data

PARENT = "run of the search"
# Settings that define the study; the others may differ each time that it continues.
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
)
ATTACHED = (BEST, FRONT, CANDIDATES, METHOD, MAP, PROGRESS, SCORES_TABLE, SCORES_PICTURE)
ATTACHED_TO_CANDIDATES = (BEST, FRONT)


@contextmanager
def search_run_of(config: SearchConfig, study: Study, folder: Path) -> Iterator[Run | None]:
    """The search's own run, for the worker that holds the folder; None for other workers.

    Raises ConnectionError at the end if the tracker has not got everything.
    """
    identity = _identity(study)
    params = {f"search.{name}": plain_data(getattr(config.search, name)) for name in GOAL}
    params["search.slots"] = ", ".join(config.search.alternatives)
    entry = RunEntry(
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


def record_search(
    run: Run, config: SearchConfig, summary: AnswerSummary, history: History, folder: Path
) -> None:
    """Logs the answer so far in the search's run."""
    files = tuple(name for name in ATTACHED if (folder / name).is_file())
    tags = {"goal": summary.goal(), **_settings(config)}
    run.log(RunOutcome(metrics=summary.metrics(history), tags=tags, files=files))


def record_candidate(
    config: SearchConfig,
    study: Study,
    summary: AnswerSummary,
    history: History,
    candidate: EvaluatedCandidate,
    folder: Path,
) -> None:
    """Records an evaluated candidate as a run below the search's, once."""
    entry = RunEntry(
        identity=f"{_identity(study)}/{candidate.number}",
        name=f"candidate {candidate.number}",
        params={"origin": candidate.origin, **_slots(summary, candidate)},
        tags={"search": study.study_name},
        parent=study.user_attrs.get(PARENT),
    )
    measured = candidate.measured
    metrics = {
        "cost": candidate.cost,
        "metric": measured.metric,
        summary.scale.score.loss_names.value: measured.drop,
        "rows": float(measured.rows),
        "complete": float(candidate.complete),
        **summary.metrics(history),
    }
    outcome = RunOutcome(metrics=metrics, tags={}, files=ATTACHED_TO_CANDIDATES)
    config.tracking.replay(entry, folder, outcome)


def _slots(summary: AnswerSummary, candidate: EvaluatedCandidate) -> dict[str, str]:
    """A candidate's alternative, where there are several."""
    space = summary.space
    return {"slots": space.slots(candidate.chosen)} if space.decides_slots else {}


def _identity(study: Study) -> str:
    return f"search/{study.study_name}/{study.user_attrs['identity']['code'][:8]}"


def _settings(config: SearchConfig) -> dict[str, str]:
    """How the study was searched this time, as tags; without the storage, whose URL may hold a password."""
    names = (field.name for field in fields(config.search) if field.name not in (*GOAL, "slots", "storage"))
    return {f"search.{name}": str(getattr(config.search, name)) for name in names}
