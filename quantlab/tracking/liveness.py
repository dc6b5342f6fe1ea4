"""Who is still at work: a process holds a lock as long as it lives, and the kernel lets go of it however that
ends.

No clock and no process id is asked: clocks are set, ids are given out again, and containers have their own.
"""

import atexit
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from quantlab.storage.files import cache_dir


@contextmanager
def lock_held(lock: Path, wait: bool = False) -> Iterator[bool]:
    """Takes a lock while the block runs; yields whether we have it. With ``wait`` we get it when it is
    free."""
    holder = FileLock(lock, timeout=-1 if wait else 0)
    try:
        holder.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        holder.release()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, as a study's candidate names the worker that evaluates it."""

    host: str
    lock: str  # the file that it holds

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        return cls(host=platform.node(), lock=str(_mine(os.getpid()).lock_file))

    def gone(self) -> bool:
        """Whether the process is known to have ended. Nothing is known of another machine's, nor where its
        lock is not to be seen: in another container, or after the cache was removed."""
        if self.host != platform.node() or not Path(self.lock).is_file():
            return False
        with lock_held(Path(self.lock)) as free:
            return free


@cache
def _mine(process: int) -> FileLock:
    """The lock of this process, held to its end."""
    path = cache_dir() / "alive" / f"{uuid.uuid4().hex}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    lock.acquire()
    atexit.register(_leave, path, process)
    return lock


def _leave(path: Path, process: int) -> None:
    """A process that ends well leaves nothing that others could look for; a fork of it has no say in this."""
    if os.getpid() == process:
        path.unlink(missing_ok=True)
