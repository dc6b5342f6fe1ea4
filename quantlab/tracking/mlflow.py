"""MLflow: an SQLite file by default, or a server. A run's record is on disk first; what MLflow has follows from it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.result import Metric
from quantlab.tracking import record as records
from quantlab.tracking.base import Entry, Outcome, Run, Tracker
from quantlab.tracking.database import first_use, shown
from quantlab.tracking.opening import prepare
from quantlab.tracking.record import FAILED, FINISHED, KILLED, RUNNING, Owner, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowEntity

SQLITE, POSTGRES = "sqlite:///", "postgresql+psycopg2://"  # a plain postgresql:// means another driver by now
PARAM_LIMIT, TAG_LIMIT = 6000, 8000  # characters, MLflow's own
CUT = " [cut short: the run's files have all of it]"
UNSEEN = "the process ended without a word: killed, or the power failed"
log = logging.getLogger(__name__)

Step = Callable[["MlflowClient", Record, Path], Record]


@dataclass(frozen=True, kw_only=True)
class MLflow(Tracker):
    """Records runs in an MLflow store, by absolute URI: ``sqlite:////...``, ``http://...`` or ``postgresql+psycopg2://...``.

    A server keeps artifacts where it was told to; those of an SQLite file lie in ``mlartifacts`` beside it.
    """

    uri: str
    experiment: str

    def __post_init__(self) -> None:
        if not self.uri.startswith((SQLITE, "http://", "https://", POSTGRES)):
            hint = " (did you mean postgresql+psycopg2://?)" if self.uri.startswith("postgres") else ""
            kinds = f"{SQLITE}/, http://, https:// or {POSTGRES}"
            raise ValueError(f"tracking.uri must start with {kinds}, got {shown(self.uri)!r}{hint}")
        if self.uri.startswith(SQLITE) and not Path(self.uri.removeprefix(SQLITE)).is_absolute():
            raise ValueError(f"tracking.uri must name an absolute path (four slashes), got {self.uri!r}")

    @contextmanager
    def start(self, entry: Entry, folder: Path) -> Iterator[Run]:
        record = Record(
            uri=self.uri, experiment=self.experiment, entry=entry, owner=Owner.me(), started_ms=records.now_ms()
        )
        before = records.earlier(record, folder)
        record = replace(record, run_id=before.run_id if before else None)
        run = MLflowRun()
        try:
            record, run.problem = attempt(begin if before is None else resume, record, folder)
        except BaseException as error:  # a signal while MLflow made the run, which may be there
            _close(record, error, folder)
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
            _close(record, error, folder)
            raise
        _, run.problem = attempt(deliver, replace(record.ended(FINISHED), outcome=run.outcome), folder)

    def ui(self) -> str:
        return self.uri if self.uri.startswith("http") else f"mlflow ui --backend-store-uri {shown(self.uri)}"

    def unsent(self, folder: Path) -> int:
        mine = [record for _, record in records.unsent(folder) if record.uri == self.uri]
        return len(mine)

    def tidy(self) -> None:
        for folder, record in list(records.orphans(self.uri)):
            if problem := attempt(deliver, abandoned(record), folder)[1]:
                log.warning("run %s could not be closed: %s", record.run_id, problem)

    def replay(self, entry: Entry, folder: Path, outcome: Outcome) -> str | None:
        now = records.now_ms()
        record = Record(
            uri=self.uri, experiment=self.experiment, entry=entry, owner=Owner.me(), started_ms=now, ended_ms=now,
            status=FINISHED, outcome=outcome,
        )  # fmt: skip
        before = records.earlier(record, folder)
        if before is not None and before.sent and before.status == FINISHED:
            return None
        return attempt(deliver, replace(record, run_id=before.run_id if before else None), folder)[1]


class MLflowRun(Run):
    """One open MLflow run."""

    outcome: Outcome | None = None

    def log(self, outcome: Outcome) -> None:
        """Keeps it until the run ends."""
        self.outcome = outcome


def _close(record: Record, error: BaseException, folder: Path) -> None:
    """Ends a run that did not end well."""
    status = FAILED if isinstance(error, Exception) else KILLED
    attempt(deliver, record.ended(status, f"{type(error).__name__}: {error}"), folder)


def attempt(step: Step, record: Record, folder: Path) -> tuple[Record, str | None]:
    """A step of recording. Whether or not MLflow takes it, the record on disk says so; returns what went wrong."""
    from mlflow.exceptions import MlflowException

    _saved(record, folder)
    try:
        record = step(connection(record.uri, record.experiment)[0], record, folder)
    except (MlflowException, OSError) as error:  # requests' and the database's errors arrive as one of these
        return record, f"{error}"
    return record, _saved(record, folder)


def _saved(record: Record, folder: Path) -> str | None:
    """Saves the record; a disk that is full does not keep MLflow from hearing of it."""
    try:
        record.save(folder)
    except OSError as error:
        return f"{folder}: {error}"
    return None


def begin(client: "MlflowClient", record: Record, folder: Path) -> Record:
    """Creates the run."""
    entry = record.entry
    tags = {"identity": entry.identity, **entry.tags} | ({"mlflow.parentRunId": entry.parent} if entry.parent else {})
    _, experiment_id = connection(record.uri, record.experiment)
    run = client.create_run(experiment_id, record.started_ms, {k: _fitting(v) for k, v in tags.items()}, entry.name)
    return replace(record, run_id=run.info.run_id)


def resume(client: "MlflowClient", record: Record, folder: Path) -> Record:
    """Finds the run that was begun before, or creates it: an answer may have been lost on its way."""
    run = _found(client, record)
    if run is None:
        return begin(client, record, folder)
    client.update_run(run.info.run_id, RUNNING)
    if "error" in run.data.tags:
        client.delete_tag(run.info.run_id, "error")
    return replace(record, run_id=run.info.run_id)


def deliver(client: "MlflowClient", record: Record, folder: Path) -> Record:
    """Sends all that the record holds, and closes the run. Sent twice, it is there once."""
    from mlflow.entities import Param, RunTag

    if record.run_id is None:
        record = resume(client, record, folder)
    assert record.run_id is not None and record.ended_ms is not None
    outcome = record.outcome or Outcome(metrics={}, tags={}, files=())
    for name in outcome.files:
        client.log_artifact(record.run_id, str(folder / name))
    tags = outcome.tags if record.error is None else {**outcome.tags, "error": record.error}
    client.log_batch(
        record.run_id,
        metrics=list(_entities(outcome.metrics, record.ended_ms)),
        params=[Param(name, _fitting(str(value), PARAM_LIMIT)) for name, value in record.entry.params.items()],
        tags=[RunTag(name, _fitting(value)) for name, value in tags.items()],
    )
    client.set_terminated(record.run_id, record.status, record.ended_ms)
    return replace(record, sent=True)


def abandoned(record: Record) -> Record:
    """The record of a run whose process is gone."""
    return record if record.status != RUNNING else record.ended(KILLED, UNSEEN)


@cache
def connection(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """A client and the experiment's id, found once a process.

    Raises ConnectionError, within seconds, where nothing answers or lets us in.
    """
    prepare(uri)
    from mlflow import MlflowClient  # seconds to import: not paid where tracking is off

    with first_use(uri):
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment_id(client, uri, experiment)
    return client, experiment_id


def _experiment_id(client: "MlflowClient", uri: str, experiment: str) -> str:
    from mlflow.exceptions import MlflowException

    artifacts = (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            return client.create_experiment(experiment, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(experiment)  # another process was quicker
    assert found is not None
    return found.experiment_id


def _found(client: "MlflowClient", record: Record) -> "MlflowEntity | None":
    _, experiment_id = connection(record.uri, record.experiment)
    runs = client.search_runs([experiment_id], f"tags.identity = '{record.entry.identity}'", max_results=1)
    return runs[0] if runs else None


def _fitting(text: str, limit: int = TAG_LIMIT) -> str:
    """A text as a tag's or a param's value; what had to be cut off says so."""
    return text if len(text) <= limit else f"{text[: limit - len(CUT)]}{CUT}"


def _entities(metrics: Mapping[str, Metric], time_ms: int) -> Iterator[Any]:
    from mlflow.entities import Metric as Entity

    for name, value in metrics.items():
        for step, number in enumerate(value if isinstance(value, list) else [value]):
            if number is not None:
                yield Entity(name, number, time_ms, step)
