"""Finished trials on disk, by key: what a sweep need not run again."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from quantlab.tracking.tracker import RunOutcome
from quantlab.trial.result import RESULT

LOCK = ".lock"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialStore:
    """A folder with one folder a trial."""

    root: Path

    def folder(self, key: str) -> Path:
        """Where a trial's files lie, or will."""
        return self.root / "trials" / key

    def summary(self, key: str, timing: str = "") -> dict[str, Any] | None:
        """What ``result.json`` says, or None where the trial has not finished, or not with this timing."""
        return finished_summary(self.folder(key), key, timing)


def finished_summary(folder: Path, key: str, timing: str = "") -> dict[str, Any] | None:
    """What the ``result.json`` of a trial's folder says; None unless it is there, whole, and of that key.

    Where ``timing`` is given, the latencies have to be of it as well: those of another processor or profile
    are none.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tags = summary["tags"]
        return summary if tags["key"] == key_in(key) and timing in ("", tags.get("timing_key")) else None
    except (ValueError, LookupError, TypeError):
        log.warning("%s is not a whole result: the trial counts as not finished", path)
        return None


def key_in(name: str) -> str:
    """The trial's key in the name of its folder, which goes on with a timing where a sweep times one trial in
    several ways."""
    return name.partition("-")[0]


def tracked_outcome(folder: Path, summary: Mapping[str, Any]) -> RunOutcome:
    """What a tracker is told of a finished trial."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return RunOutcome(metrics=summary["metrics"], tags=summary["tags"], files=tuple(files))


@contextmanager
def locked_folder(folder: Path, what: str, wait: bool) -> Iterator[None]:
    """Keeps a folder for this process; the lock ends with the process, however that ends.

    Raises BlockingIOError where another process holds it and we do not ``wait``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        with lock:
            yield
    except Timeout:
        raise BlockingIOError(f"{what} is being run by another process ({folder / LOCK} is locked)") from None
