"""Progress: bars on a terminal, and elsewhere one line for each step of a process."""

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypeVar

from rich import get_console
from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T], title: str) -> Iterable[T]:
    """Returns the items, and shows how many are done.

    A terminal gets a bar that disappears at the end. Elsewhere the title is printed to standard error, once
    a process.
    """
    if get_console().is_terminal:
        return track(items, title, transient=True)
    _announce(title)
    return items


@cache
def _announce(title: str) -> None:
    print(f"{title} ...", file=sys.stderr, flush=True)
