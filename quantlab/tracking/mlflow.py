"""MLflow: an SQLite file by default, or a server. A run's record is on disk first; what MLflow has follows
from it."""

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.cli.secrets import signed_in, without_password
from quantlab.tracking import mlflow_limits
from quantlab.tracking import mlflow_pages as pages
from quantlab.tracking import record as records
from quantlab.tracking.address import sqlite_file, store_uri
from quantlab.tracking.database import first_use
from quantlab.tracking.opening import first_request, set_mlflow_environment
from quantlab.tracking.record import FAILED, FINISHED, KILLED, RUNNING, Record
from quantlab.tracking.tracker import Run, RunEntry, RunOutcome, RunsTable, Tracker
from quantlab.trial.result import Metric

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowEntity

PARENT = "mlflow.parentRunId"
DELETED = "deleted"  # MLflow's own word
UNSEEN = "the process ended without a word: killed, or the power failed"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MlflowStore:
    """An experiment of an MLflow store."""

    client: "MlflowClient"
    experiment_id: str


Step = Callable[[MlflowStore, Record, Path], Record]


@dataclass(frozen=True, kw_only=True)
class MLflow(Tracker):
    """Records runs in an MLflow store: an SQLite file by its absolute path, or a URI that begins with
    ``sqlite:////``, ``http://``, ``https://`` or ``postgresql+psycopg2://``.

    A server keeps artifacts where it was told to; those of an SQLite file lie in ``mlartifacts`` beside it. A
    password in the URI is used and kept nowhere.
    """

    uri: str
    experiment: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", store_uri(self.uri))

    @property
    def address(self) -> str:
        """The URI without its password: what is shown and written."""
        return without_password(self.uri)

    @contextmanager
    def start(self, entry: RunEntry, folder: Path) -> Iterator[Run]:
        record = self._record(entry)
        with record.held(folder):
            known = record.file(folder).is_file()
            before = records.earlier_record(record, folder)
            record = replace(record, run_id=before.run_id if before else None)
            run = MLflowRun()
            try:
                record, run.problem = attempt(resume if known else begin, record, folder, self.uri)
            except BaseException as error:  # a signal while MLflow made the run, which may be there
                self._close(record, error, folder)
                raise
            if run.problem and entry.parent is None:
                record.forget(folder, before)  # nothing has run, so there is nothing to send later
                raise ConnectionError(run.problem)
            run.id = record.run_id
            try:
                if entry.parent is None:
                    self.tidy()
                yield run
            except BaseException as error:
                self._close(replace(record, outcome=run.outcome), error, folder)
                raise
            done = replace(record.ended(FINISHED), outcome=run.outcome)
            _, run.problem = attempt(deliver, done, folder, self.uri)

    def run_id(self, entry: RunEntry, folder: Path) -> str | None:
        record = records.earlier_record(self._record(entry), folder)
        return record.run_id if record else None

    def run_page(self, run_id: str | None) -> tuple[str, ...]:
        if run_id is None:
            return ()
        store = connection(self.uri, self.experiment)  # known since the run started
        return pages.lines(self.address, pages.run_path(store.experiment_id, run_id))

    def table_page(self, table: RunsTable) -> tuple[str, ...]:
        from mlflow.exceptions import MlflowException

        try:
            with signed_in(self.uri):
                store = connection(self.uri, self.experiment)
                path = pages.save_table(store.client, store.experiment_id, table)
        except (MlflowException, OSError) as error:
            log.warning("no link into MLflow: %s", without_password(str(error)).splitlines()[0])
            return ()
        return pages.lines(self.address, path)

    def unsent(self, folder: Path) -> int:
        return sum(record.uri == self.address for _, record in records.unsent(folder))

    def tidy(self) -> None:
        for folder, record in records.orphans(self.address):
            if problem := attempt(deliver, abandoned(record), folder, self.uri)[1]:
                log.warning("run %r could not be closed: %s", record.entry.name, problem)

    def replay(self, entry: RunEntry, folder: Path, outcome: RunOutcome) -> str | None:
        record = self._record(entry)
        with record.held(folder):
            before = records.earlier_record(record, folder)
            if before is None or before.status != FINISHED:
                now = records.now_ms()
                before = replace(
                    record, run_id=before.run_id if before else None, status=FINISHED, ended_ms=now
                )
            record = replace(before, entry=entry, outcome=outcome)
            if record.sent:
                record, problem = attempt(confirm, record, folder, self.uri)
                if record.sent:
                    return problem
            return attempt(deliver, record, folder, self.uri)[1]

    def _record(self, entry: RunEntry) -> Record:
        return Record(uri=self.address, experiment=self.experiment, entry=entry, started_ms=records.now_ms())

    def _close(self, record: Record, error: BaseException, folder: Path) -> None:
        """Ends a run that did not end well."""
        status = FAILED if isinstance(error, Exception) else KILLED
        text = without_password(f"{type(error).__name__}: {error}")
        attempt(deliver, record.ended(status, text), folder, self.uri)


class MLflowRun(Run):
    """One open MLflow run."""

    outcome: RunOutcome | None = None

    def log(self, outcome: RunOutcome) -> None:
        """Keeps it until the run ends."""
        self.outcome = outcome


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


@cache
def connection(uri: str, experiment: str) -> MlflowStore:
    """A store and its experiment, found once a process.

    Raises ConnectionError, within seconds, where nothing answers or lets us in, or the experiment was
    deleted.
    """
    set_mlflow_environment()
    from mlflow import MlflowClient  # seconds to import: not paid where tracking is off

    with signed_in(uri) as address, first_use(address):
        with first_request(uri):
            client = MlflowClient(tracking_uri=address)
            known = client.get_experiment_by_name(experiment)
        if known is not None and known.lifecycle_stage == DELETED:
            raise ConnectionError(
                f"the experiment {experiment!r} of {without_password(uri)} is deleted: choose another "
                f"tracking.experiment, or restore it: "
                f"MLFLOW_TRACKING_URI={shlex.quote(without_password(uri))} "
                f"mlflow experiments restore --experiment-id {known.experiment_id}"
            )
        return MlflowStore(client, known.experiment_id if known else _new_experiment(client, uri, experiment))


def _new_experiment(client: "MlflowClient", uri: str, experiment: str) -> str:
    from mlflow.exceptions import MlflowException

    file = sqlite_file(uri)
    try:
        artifacts = (file.parent / "mlartifacts").as_uri() if file else None
        return client.create_experiment(experiment, artifacts, dict([pages.KIND]))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.get_experiment_by_name(experiment)  # another process was quicker
    assert known is not None
    return known.experiment_id


def _entities(metrics: Mapping[str, Metric], time_ms: int) -> Iterator[Any]:
    from mlflow.entities import Metric as Entity

    for name, value in metrics.items():
        for step, number in enumerate(value if isinstance(value, list) else [value]):
            if number is not None:
                yield Entity(name, number, time_ms, step)
