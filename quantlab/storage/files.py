"""The cache folder, and the one way anything gets into it: whole or not at all."""

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

CODE = Path(__file__).parents[1]
# What starts, records and compares trials decides none of their numbers (tests/test_imports.py holds it to
# that).
NO_NUMBERS = frozenset(
    ["analysis", "api", "cli", "reporting", "results", "searching", "sweeping", "tracking", "training"]
    + [path.name for path in CODE.glob("*.py") if path.stem != "__init__"]  # the commands
)


def cache_dir() -> Path:
    """``$QUANTLAB_CACHE``, or ``quantlab`` in the user's cache folder: ``$XDG_CACHE_HOME``, or ``~/.cache``.

    A variable that is empty counts as not set, as does an ``$XDG_CACHE_HOME`` that is not absolute (XDG's own
    rule).
    """
    if own := os.environ.get("QUANTLAB_CACHE"):
        return Path(own).absolute()
    users = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (users if users.is_absolute() else Path.home() / ".cache") / "quantlab"


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over the parts, each with its length before it, so that ``["ab", "c"]`` is not ``["a",
    "bc"]``."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_digest() -> str:
    """One digest of the source that decides a trial's numbers, a part of every key: other code, other
    results.

    It is taken once a process, so that a source file edited while a sweep runs does not name results of the
    old code.
    """
    files = (path for pattern in ("*.py", "*.c") for path in CODE.rglob(pattern))
    sources = sorted(path for path in files if path.relative_to(CODE).parts[0] not in NO_NUMBERS)
    return digest(part for path in sources for part in (path.relative_to(CODE).as_posix(), path.read_bytes()))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A fresh folder to write in, renamed to ``target`` when the block ends well and removed when it does
    not.

    Renaming is atomic, so a reader sees all of ``target`` or nothing, after a power failure too. Where
    another process has written the same key meanwhile, its folder stays: equal keys mean equal content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        settle([*scratch.rglob("*"), scratch])
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        settle([target.parent])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file as :func:`whole_file` does."""
    with whole_file(path) as scratch:
        scratch.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A fresh path to write a file at, which is renamed over ``path`` when the block ends well: a reader sees
    the older content or all of the new one, after a power failure too."""
    scratch = path.with_name(f".{uuid.uuid4().hex}")
    try:
        yield scratch
        settle([scratch])
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    settle([path.parent])


def settle(paths: Iterable[Path]) -> None:
    """Waits until files, and the names in folders, are on the disk: a power failure does not take them
    back."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems do this for files alone
                raise
        finally:
            os.close(handle)
