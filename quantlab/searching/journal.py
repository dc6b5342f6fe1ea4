"""A study's journal file: one JSON line a change. One process writes at a time; a killed one does no harm."""

import json
import logging
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

log = logging.getLogger(__name__)


class JournalLock(JournalFileOpenLock):
    """Lets one process write a journal at a time. The kernel releases the lock when its process ends.

    Optuna's own lock is a file that a killed writer leaves behind: others wait for it for half a minute, or
    for ever if it is a dangling link.
    """

    def __init__(self, journal: Path) -> None:
        self.lock = FileLock(f"{journal}.writer")

    def acquire(self) -> bool:
        """Waits for the journal."""
        self.lock.acquire()
        return True

    def release(self) -> None:
        """Lets the next writer in."""
        self.lock.release()


def open_journal(path: Path) -> JournalStorage:
    """Opens or creates a journal. Raises ValueError with the number of a broken line."""
    lock = JournalLock(path)
    if path.is_file():
        with lock.lock:
            mend(path)
    return JournalStorage(JournalFileBackend(str(path), lock))


def mend(path: Path) -> None:
    """Removes an incomplete last line, so that the next record starts a line of its own."""
    with path.open("rb+") as file:
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                log.warning("%s: line %d is incomplete and was removed", path, number)
                file.truncate(whole)
                return
            try:
                json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number} is broken ({error}): keep the lines before it with "
                    f"`head -n {number - 1}`, and go on from there"
                ) from None
            whole += len(line)
