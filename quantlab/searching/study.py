"""The Optuna study of a search: opens or continues it, and frees the candidates of workers that died."""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import NullPool, create_engine, inspect
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from quantlab.cli.secrets import without_password
from quantlab.results.store import locked_folder
from quantlab.searching.alternatives import OWN
from quantlab.searching.costs import UNITS
from quantlab.searching.journal import open_journal
from quantlab.searching.search_config import Search
from quantlab.searching.space import Choices, Space
from quantlab.storage.files import digest
from quantlab.tracking.address import sqlite_url
from quantlab.tracking.database import RUNS
from quantlab.tracking.liveness import Owner

IDENTITY = "identity"
OWNER = "owner"
SETUP_ROWS = "rows of reference and scores"
CANDIDATE = "candidate"
HELD_OUT = "on the rows that did not choose"
FEW_VARIABLES, FEW_EVALUATIONS = 20, 100  # up to these a Gaussian process is worth its own time
SQLITE_WAIT_S = 60
CHANCES = 5

optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(search: Search, space: Space, folder: Path, identity: Mapping[str, str]) -> Study:
    """Creates the study or continues it. ``identity``: fingerprints of what its numbers depend on.

    Raises ValueError naming what differs if a study of this name has another identity, and ConnectionError if
    the storage cannot be reached.
    """
    url = storage_url(search.storage, folder)
    study = _created(url, search, space, folder)
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, dict(identity))
    elif differing := [name for name in identity if known.get(name) != identity[name]]:
        raise ValueError(
            f"the study {search.name!r} in {without_password(url)} is of another "
            f"{', another '.join(differing)}: its results are not comparable. Give this search another "
            f"search.name"
        )
    return study


def storage_url(storage: str | None, folder: Path) -> str:
    """The URL of the study's database or the path of its journal; without ``search.storage``, of study.db in
    ``folder``."""
    if storage is None or (storage.startswith("/") and not storage.endswith(".log")):
        return sqlite_url(Path(storage or folder / "study.db"))
    return storage


def _created(url: str, search: Search, space: Space, folder: Path) -> Study:
    directions: Any = {"cost": ["minimize"], "accuracy": ["maximize"], "pareto": ["minimize", "maximize"]}[
        search.mode
    ]
    for chance in reversed(range(CHANCES)):
        try:
            # Optuna's tables are made by one process at a time.
            with _experimental(), locked_folder(folder / "opening", "the study", wait=True):
                study = optuna.create_study(
                    storage=_storage(url, search.heartbeat_s),
                    study_name=search.name,
                    directions=directions,
                    sampler=make_sampler(search, space),
                    load_if_exists=True,
                )
                study.set_metric_names(metric_names(search))
                return study
        except (IntegrityError, ProgrammingError):  # a worker on another host is making them
            if not chance:
                raise
            time.sleep(1)
        except ImportError as error:
            raise ConnectionError(
                f"the study's storage {without_password(url)} cannot be used: its driver is not there "
                f"({error}); Postgres is postgresql+psycopg2://, with pip install 'quantlab[server]'"
            ) from None
        except (SQLAlchemyError, ArgumentError, StorageInternalError, OSError) as error:
            reason = str(getattr(error.__cause__ or error, "orig", None) or error).splitlines()[0]
            raise ConnectionError(
                f"the study's storage {without_password(url)} cannot be used: {reason}"
            ) from None
    raise AssertionError("unreachable")


def metric_names(search: Search) -> list[str]:
    """Names of the study's objective values, for optuna-dashboard."""
    unit = UNITS[search.cost]
    penalized = f"{unit} (beyond max_drop: the most of these, and the loss beyond)"
    return {"cost": [penalized], "accuracy": ["metric"], "pareto": [unit, "metric"]}[search.mode]


def identity_of(
    search: Search, space: Space, checkpoint: str, data: str, code: str, trial: str
) -> dict[str, str]:
    """Fingerprints of what a study's numbers depend on."""
    layout = [(v.name, [site.name for site in v.sites]) for v in space.variables]
    goal = (search.mode, search.max_drop, search.max_cost, search.decide, search.reference, search.cost)
    slots = [repr(space.alternatives)] if space.alternatives != (OWN,) else []
    return {
        "space": digest([repr(layout), repr(space.choices), *slots]),
        "checkpoint": checkpoint,
        "data": data,
        "code": code,
        "trial config": digest([trial]),
        "goal": repr(goal),
    }


def retry_stale(study: Study) -> None:
    """Queues the candidates of workers whose heartbeat has stopped."""
    with _experimental():
        fail_stale_trials(study)


def retry_dead(study: Study, width: int, silent_s: float) -> None:
    """Queues the candidates of this machine's dead workers at once, whatever the storage.

    Dead workers on other machines are found by their heartbeats (:func:`retry_stale`). A worker that was
    killed before it wrote its owner has no heartbeat either: its trial fails after ``silent_s``. ``width`` is
    the number of a candidate's parameters.
    """
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        owner, started = trial.user_attrs.get(OWNER), trial.datetime_start
        unsigned = (
            owner is None and started is not None and (datetime.now() - started).total_seconds() > silent_s
        )
        if not unsigned and (owner is None or not Owner(**owner).gone()):
            continue
        with suppress(ValueError):  # another worker has told Optuna already
            study.tell(trial.number, state=TrialState.FAIL)
            if len(trial.params) == width:
                study.enqueue_trial(
                    trial.params, user_attrs={"origin": trial.user_attrs.get("origin", "sampler")}
                )


def count_setup(study: Study, what: str, rows: int) -> None:
    """Records rows that were answered besides candidates, by purpose: several workers count once."""
    study.set_user_attr(SETUP_ROWS, {**study.user_attrs.get(SETUP_ROWS, {}), what: rows})


def keep_held_out(study: Study, number: int, measured: Mapping[str, Any]) -> None:
    """Records a candidate's measurement on the rows that did not choose it."""
    study.set_user_attr(HELD_OUT, {**study.user_attrs.get(HELD_OUT, {}), str(number): dict(measured)})


@contextmanager
def _experimental() -> Iterator[None]:
    """Hides the warning that Optuna's heartbeats are experimental, as they have been since version 2.8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def make_sampler(search: Search, space: Space) -> BaseSampler:
    """The sampler of candidates that no score proposes. Each worker has another seed."""
    seed = search.seed + 1000 * search.worker
    few = len(space.variables) <= FEW_VARIABLES and (search.trials or search.budget) <= FEW_EVALUATIONS
    automatic = "nsga2" if search.mode == "pareto" else "gp" if few else "tpe"
    name = automatic if search.sampler == "auto" else search.sampler
    if name == "gp":
        return GPSampler(seed=seed, deterministic_objective=True)
    if name == "nsga2":
        return NSGAIISampler(seed=seed)
    return RandomSampler(seed=seed) if name == "random" else TPESampler(seed=seed)


def distributions_of(space: Space) -> dict[str, Any]:
    """The space as Optuna's distributions, by variable."""
    return {name: CategoricalDistribution(choices) for name, choices in space.decided.items()}


def candidate_params(space: Space, chosen: Choices) -> dict[str, Any]:
    """A candidate as Optuna's parameters."""
    return dict(zip(space.decided, chosen, strict=True))


def earlier_claims(trials: Iterable[FrozenTrial], number: int) -> list[FrozenTrial]:
    """Trials before ``number`` that run or are complete. Of two with one candidate, the first has it."""
    taken = (TrialState.RUNNING, TrialState.COMPLETE)
    return [trial for trial in trials if trial.number < number and trial.state in taken]


def _storage(url: str, heartbeat_s: int) -> BaseStorage:
    if url.endswith(".log"):
        return open_journal(Path(url))
    waiting = {"connect_args": {"timeout": SQLITE_WAIT_S}} if url.startswith("sqlite") else {}
    if RUNS in inspect(create_engine(url, poolclass=NullPool, **waiting)).get_table_names():
        raise ValueError(
            f"{without_password(url)} is MLflow's database: the study needs another search.storage"
        )
    return RDBStorage(
        url.replace("{", "{{").replace("}", "}}"),  # Optuna formats the URL
        engine_kwargs=waiting,
        heartbeat_interval=heartbeat_s,
        grace_period=2 * heartbeat_s,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
