"""A run's record on disk: all that MLflow is told, kept beside the results until it has arrived there."""

import json
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from quantlab.storage.files import cache_dir, digest, write_whole
from quantlab.tracking.liveness import lock_held
from quantlab.tracking.tracker import RunEntry, RunOutcome

FOLDER = "tracking"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # MLflow's own words
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a tracking store should say of a run, and whether it does."""

    uri: str  # without a password
    experiment: str
    entry: RunEntry
    started_ms: int
    host: str = field(default_factory=platform.node)  # the machine that the run is on
    run_id: str | None = None
    status: str = RUNNING
    ended_ms: int | None = None
    outcome: RunOutcome | None = None
    error: str | None = None
    sent: bool = False

    def ended(self, status: str, error: str | None = None) -> "Record":
        """The record of a run that is over."""
        return replace(self, status=status, ended_ms=now_ms(), error=error, sent=False)

    def file(self, folder: Path) -> Path:
        """Its place in the run's folder, named by where it goes and whose it is."""
        return folder / FOLDER / f"{digest([self.uri, self.experiment, self.entry.identity])[:16]}.json"

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """Keeps the record for this process: who finds its lock free knows that nobody is at work on the
        run."""
        path = self.file(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_held(_lock(path), wait=True):
            yield

    def save(self, folder: Path) -> None:
        """Writes it whole. Until it has arrived, the cache folder points to it, for whoever starts next."""
        path = self.file(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self), indent=2))
        pointer = waiting_dir() / path.name
        if self.sent:
            pointer.unlink(missing_ok=True)
        else:
            pointer.parent.mkdir(parents=True, exist_ok=True)
            write_whole(pointer, str(folder.absolute()))

    def forget(self, folder: Path, before: "Record | None") -> None:
        """Leaves things as they were before this record."""
        if before is not None:
            before.save(folder)
            return
        self.file(folder).unlink(missing_ok=True)
        (waiting_dir() / self.file(folder).name).unlink(missing_ok=True)


def waiting_dir() -> Path:
    """Where records are pointed to that have not arrived."""
    return cache_dir() / "waiting"


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit."""
    return int(1000 * time.time())


def read_record(path: Path) -> Record | None:
    """A record from its file; None, with a warning that names the file, where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        outcome = content["outcome"]
        if "owner" in content:  # a process of a machine, in place of the machine
            content["host"] = content.pop("owner")["host"]
        return Record(
            **content
            | {
                "entry": RunEntry(**content["entry"]),
                "outcome": outcome and RunOutcome(**outcome | {"files": tuple(outcome["files"])}),
            }
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        log.warning("%s is no record of a run and is left out: %s", path, error)
        return None


def earlier_record(record: Record, folder: Path) -> Record | None:
    """The record that the same run left in its folder before, if it did."""
    path = record.file(folder)
    return read_record(path) if path.is_file() else None


def unsent(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Folder and record of every run under ``folder`` that is over, or whose process is, and has not arrived.

    Each is kept for the caller while it looks at it.
    """
    for path in sorted(folder.rglob(f"{FOLDER}/*.json")):
        record = read_record(path)
        if record is not None and not record.sent:
            with _to_send(path) as waiting:
                if waiting is not None:
                    yield path.parent.parent, waiting


def orphans(uri: str) -> Iterator[tuple[Path, Record]]:
    """Folder and record of every run that its process left without a word, or could not send. Each is kept
    for the caller while it looks at it."""
    for pointer in sorted(waiting_dir().glob("*.json")):
        try:
            folder = Path(pointer.read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError):  # it has arrived meanwhile; or it is none
            continue
        path = folder / FOLDER / pointer.name
        record = read_record(path) if path.is_file() else None
        if record is None:
            pointer.unlink(missing_ok=True)  # the run's folder was removed, or there is nothing to send
        elif record.uri == uri and record.host == platform.node():
            with _to_send(path) as waiting:
                if waiting is not None:
                    yield folder, waiting


@contextmanager
def _to_send(path: Path) -> Iterator[Record | None]:
    """A record that waits for somebody to send it, kept; None where it has arrived, or somebody is at work on
    it.

    Of a run that goes on at another machine nothing is known: its lock may not be seen here.
    """
    with lock_held(_lock(path)) as free:
        record = read_record(path) if free else None
        known = record is not None and (record.status != RUNNING or record.host == platform.node())
        yield record if record is not None and known and not record.sent else None


def _lock(path: Path) -> Path:
    return path.with_suffix(".lock")
