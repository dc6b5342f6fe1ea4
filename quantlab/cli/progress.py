"""Progress: bars on a terminal, and elsewhere a line for each step of a process and for each minute of it."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TypeVar

from rich import get_console
from rich.progress import track

T = TypeVar("T")

EVERY_S = 60.0  # between two lines of one step


def progress(items: Sequence[T], title: str) -> Iterable[T]:
    """Returns the items, and shows how many are done.

    A terminal gets a bar that disappears at the end. Elsewhere the title is printed to standard error, once
    a process, and what is done whenever a minute has passed.
    """
    if get_console().is_terminal:
        return track(items, title, transient=True)
    _announce(title)
    return _told(items, title)


@cache
def _announce(title: str) -> None:
    print(f"{title} ...", file=sys.stderr, flush=True)


def _told(items: Sequence[T], title: str) -> Iterator[T]:
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            print(f"{title}: {done} of {len(items)} done", file=sys.stderr, flush=True)
        yield item
