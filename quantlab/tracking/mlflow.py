"""MLflow: an SQLite file by default, or a server. A run's record is on disk first; what MLflow has follows
from it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from quantlab.cli.secrets import signed_in, without_password
from quantlab.tracking import mlflow_pages as pages
from quantlab.tracking import record as records
from quantlab.tracking.address import store_uri
from quantlab.tracking.mlflow_steps import abandoned, attempt, begin, confirm, deliver, resume
from quantlab.tracking.mlflow_store import connection
from quantlab.tracking.record import FAILED, FINISHED, KILLED, Record
from quantlab.tracking.tracker import Run, RunEntry, RunOutcome, RunsTable, Tracker

log = logging.getLogger(__name__)


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
