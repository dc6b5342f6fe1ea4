"""Each step of recording a run in MLflow. A run's record on disk comes first, and says how far it got."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.cli.secrets import signed_in, without_password
from quantlab.tracking import mlflow_limits
from quantlab.tracking.mlflow_store import DELETED, MlflowStore, connection
from quantlab.tracking.record import KILLED, RUNNING, Record
from quantlab.tracking.tracker import RunOutcome
from quantlab.trial.result import Metric

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowEntity

PARENT = "mlflow.parentRunId"
UNSEEN = "the process ended without a word: killed, or the power failed"
Step = Callable[[MlflowStore, Record, Path], Record]
log = logging.getLogger(__name__)


def attempt(step: Step, record: Record, folder: Path, uri: str) -> tuple[Record, str | None]:
    """A step of recording in the store at ``uri``, which has the password that the record's own does not
    have.

    Whether or not MLflow takes it, the record on disk says so; returns what went wrong.
    """
    from mlflow.exceptions import MlflowException

    _saved(record, folder)
    try:
        with signed_in(uri):
            record = step(connection(uri, record.experiment), record, folder)
    except (MlflowException, OSError) as error:  # requests' and the database's errors arrive as one of these
        return record, without_password(f"{error}").splitlines()[0]
    return record, _saved(record, folder)


def _saved(record: Record, folder: Path) -> str | None:
    """Saves the record; a disk that is full does not keep MLflow from hearing of it."""
    try:
        record.save(folder)
    except OSError as error:
        return f"{folder}: {error}"
    return None


def begin(store: MlflowStore, record: Record, folder: Path) -> Record:
    """Creates the run."""
    entry = record.entry
    tags = {"identity": entry.identity, **entry.tags} | ({PARENT: entry.parent} if entry.parent else {})
    name = mlflow_limits.valid_run_name(entry.name)
    if name != entry.name:
        tags["full_name"] = entry.name
    fit = {key: mlflow_limits.cut(value) for key, value in mlflow_limits.valid_names(tags).items()}
    run = store.client.create_run(store.experiment_id, record.started_ms, fit, name)
    return replace(record, run_id=run.info.run_id)


def resume(store: MlflowStore, record: Record, folder: Path) -> Record:
    """Takes up the run that was begun before, or creates it: an answer may have been lost on its way, and
    somebody may have deleted the run."""
    run = restored(store, record)
    if run is None:
        return begin(store, record, folder)
    store.client.update_run(run.info.run_id, RUNNING)
    if "error" in run.data.tags:
        store.client.delete_tag(run.info.run_id, "error")
    return replace(record, run_id=run.info.run_id)


def confirm(store: MlflowStore, record: Record, folder: Path) -> Record:
    """Whether the store still has a run that was sent: it may be another store by now, or somebody's
    deletion."""
    run = known(store, record) or restored(store, record)
    return (
        record
        if run is not None and run.info.status == record.status
        else replace(record, run_id=None, sent=False)
    )


def known(store: MlflowStore, record: Record) -> "MlflowEntity | None":
    """The run by its id, without a search through all runs; None where it has to be looked for: it is another
    store's, deleted, or not under its parent."""
    from mlflow.exceptions import MlflowException

    if record.run_id is None:
        return None
    try:
        run = store.client.get_run(record.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    tags, parent = run.data.tags, record.entry.parent
    own = tags.get("identity") == record.entry.identity and (not parent or tags.get(PARENT) == parent)
    return run if own and run.info.lifecycle_stage != DELETED else None


def restored(store: MlflowStore, record: Record) -> "MlflowEntity | None":
    """The run that the store has under this identity, taken back where it was deleted, and put under its
    parent; None where there is none."""
    from mlflow.entities import ViewType

    identity, parent = record.entry.identity, record.entry.parent
    query = mlflow_limits.equality_filter("tags.identity", identity)
    runs = store.client.search_runs([store.experiment_id], query, ViewType.ALL)
    own = [run for run in runs if run.data.tags["identity"] == identity]
    own.sort(key=lambda run: (run.info.lifecycle_stage == DELETED, run.info.run_id != record.run_id))
    run = next(iter(own), None)
    if run is not None and run.info.lifecycle_stage == DELETED:
        store.client.restore_run(run.info.run_id)
    if run is not None and parent and run.data.tags.get(PARENT) != parent:
        store.client.set_tag(run.info.run_id, PARENT, parent)
    return run


def deliver(store: MlflowStore, record: Record, folder: Path) -> Record:
    """Sends all that the record holds, and closes the run. Sent twice, it is there once."""
    from mlflow.entities import Param, RunTag

    if record.run_id is None:
        record = resume(store, record, folder)
    assert record.run_id is not None and record.ended_ms is not None
    outcome = record.outcome or RunOutcome(metrics={}, tags={}, files=())
    for name in outcome.files:
        if (folder / name).is_file():
            store.client.log_artifact(record.run_id, str(folder / name))
        else:
            log.warning(
                "%s is not there any more: the run %r goes without it", folder / name, record.entry.name
            )
    tags = outcome.tags if record.error is None else {**outcome.tags, "error": record.error}
    params = mlflow_limits.valid_names(record.entry.params)
    for batch in mlflow_limits.batches(
        metrics=list(_entities(mlflow_limits.valid_names(outcome.metrics), record.ended_ms)),
        params=[
            Param(name, mlflow_limits.cut(str(value), mlflow_limits.PARAM_LIMIT))
            for name, value in params.items()
        ],
        tags=[
            RunTag(name, mlflow_limits.cut(value)) for name, value in mlflow_limits.valid_names(tags).items()
        ],
    ):
        store.client.log_batch(record.run_id, batch["metrics"], batch["params"], batch["tags"])
    store.client.set_terminated(record.run_id, record.status, record.ended_ms)
    return replace(record, sent=True)


def abandoned(record: Record) -> Record:
    """The record of a run whose process is gone, to be sent to whichever run the store has for it by now."""
    over = record if record.status != RUNNING else record.ended(KILLED, UNSEEN)
    return replace(over, run_id=None)


def _entities(metrics: Mapping[str, Metric], time_ms: int) -> Iterator[Any]:
    from mlflow.entities import Metric as Entity

    for name, value in metrics.items():
        for step, number in enumerate(value if isinstance(value, list) else [value]):
            if number is not None:
                yield Entity(name, number, time_ms, step)
