"""A run's record on disk: all that MLflow is told, kept beside the results until it has arrived there."""

import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from quantlab.cache import cache_dir, digest, write_whole
from quantlab.tracking.base import Entry, Outcome

FOLDER = "tracking"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # MLflow's own words


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that keeps a record."""

    host: str
    pid: int
    started_s: float  # a process id is given out again, with another start

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        return cls(host=platform.node(), pid=os.getpid(), started_s=psutil.Process().create_time())

    def gone(self) -> bool:
        """Whether the process is known to have ended. Of another machine nothing is known."""
        if self.host != platform.node():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.started_s or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a tracking store should say of a run, and whether it does."""

    uri: str
    experiment: str
    entry: Entry
    owner: Owner
    started_ms: int
    run_id: str | None = None
    status: str = RUNNING
    ended_ms: int | None = None
    outcome: Outcome | None = None
    error: str | None = None
    sent: bool = False

    def ended(self, status: str, error: str | None = None) -> "Record":
        """The record of a run that is over."""
        return replace(self, status=status, ended_ms=now_ms(), error=error, sent=False)

    def file(self, folder: Path) -> Path:
        """Its place in the run's folder, named by where it goes and whose it is."""
        return folder / FOLDER / f"{digest([self.uri, self.experiment, self.entry.identity])[:16]}.json"

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


def read(path: Path) -> Record:
    """A record from its file. Raises ValueError, naming the file, where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        outcome = content["outcome"]
        return Record(**content | {
            "entry": Entry(**content["entry"]),
            "owner": Owner(**content["owner"]),
            "outcome": outcome and Outcome(**outcome | {"files": tuple(outcome["files"])}),
        })  # fmt: skip
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no record of a run: {error}") from error


def earlier(record: Record, folder: Path) -> Record | None:
    """The record that the same run left in its folder before, if it did."""
    path = record.file(folder)
    return read(path) if path.is_file() else None


def unsent(folder: Path) -> list[tuple[Path, Record]]:
    """Folder and record of every run under ``folder`` that is over, or whose process is, and has not arrived."""
    found = ((path.parent.parent, read(path)) for path in sorted(folder.rglob(f"{FOLDER}/*.json")))
    return [(place, record) for place, record in found if not record.sent and _over(record)]


def orphans(uri: str) -> Iterator[tuple[Path, Record]]:
    """Folder and record of every run that its process left without a word, or could not send."""
    for pointer in sorted(waiting_dir().glob("*.json")):
        try:
            folder = Path(pointer.read_text(encoding="utf-8"))
        except FileNotFoundError:  # it has arrived meanwhile
            continue
        path = folder / FOLDER / pointer.name
        if not path.is_file():
            pointer.unlink(missing_ok=True)  # its folder was removed
            continue
        record = read(path)
        if record.uri == uri and not record.sent and record.owner.gone():
            yield folder, record


def _over(record: Record) -> bool:
    return record.status != RUNNING or record.owner.gone()
