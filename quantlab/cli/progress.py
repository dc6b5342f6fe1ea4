"""Progress: bars on a terminal, and elsewhere one line for each step of a process."""

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypeVar

from rich import get_console
from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T], title: str) -> Iterable[T]:
    """The items, with a bar that goes away at the end. In a log, which has no use for a bar's remains, the
    title stands once, when the process comes to the step for the first time."""
    if get_console().is_terminal:
        return track(items, title, transient=True)
    _announce(title)
    return items


@cache
def _announce(title: str) -> None:
    print(f"{title} ...", file=sys.stderr, flush=True)
