"""A study's journal: one JSON line a change, written by one process at a time, and whole after one was
killed."""

import json
import logging
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

log = logging.getLogger(__name__)


class JournalLock(JournalFileOpenLock):
    """Keeps a journal for one writer; the kernel lets go of it when the writer ends.

    Optuna's own lock is a file that a killed writer leaves behind: it is waited for half a minute, or, where
    it is a link that leads nowhere, without end.
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
    """Opens a journal, or makes one. Raises ValueError, with its number, where a line of it is broken."""
    lock = JournalLock(path)
    if path.is_file():
        with lock.lock:
            mend(path)
    return JournalStorage(JournalFileBackend(str(path), lock))


def mend(path: Path) -> None:
    """Takes off a last line that was cut short, so that the next record does not share it."""
    with path.open("rb+") as file:
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                log.warning("%s: line %d was cut short, and is left out", path, number)
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
