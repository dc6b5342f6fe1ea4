"""Progress bars on a terminal, silence elsewhere: a log has no use for a bar's remains."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich import get_console
from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T], title: str) -> Iterable[T]:
    """The items, with a bar that goes away at the end."""
    return track(items, title, transient=True, disable=not get_console().is_terminal)
