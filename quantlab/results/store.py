"""Finished trials on disk by key, so that a sweep runs none twice."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from quantlab.trial.result import RESULT

LOCK = ".lock"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialStore:
    """The root folder of trials: one folder a trial, named by its key."""

    root: Path

    def folder(self, key: str) -> Path:
        """The folder of a trial's files, whether it exists or not."""
        return self.root / "trials" / key

    def summary(self, key: str, timing: str = "") -> dict[str, Any] | None:
        """The trial's ``result.json``; None where it has not finished, or not with this timing."""
        return finished_summary(self.folder(key), key, timing)


def finished_summary(folder: Path, key: str, timing: str = "") -> dict[str, Any] | None:
    """Reads the ``result.json`` of a trial's folder; None where it is missing, broken or of another key.

    With ``timing``, also None where the latencies are of another processor or profile.
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
    """The trial's key in a folder's name: what stands before ``-<timing>``."""
    return name.partition("-")[0]


@contextmanager
def locked_folder(folder: Path, what: str, wait: bool) -> Iterator[None]:
    """Locks a folder for this process; the lock ends with the process.

    Raises BlockingIOError where another process holds the lock and ``wait`` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        with lock:
            yield
    except Timeout:
        raise BlockingIOError(f"{what} is being run by another process ({folder / LOCK} is locked)") from None
