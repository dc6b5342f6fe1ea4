"""Printing for people, with Rich."""

from typing import Any

from rich.console import Console
from rich.text import Text


def plain_console(**options: Any) -> Console:
    """A console that prints texts as they are: ``[x]`` and ``:cat:`` in a name of a user's are no markup."""
    plain = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
    return Console(**{**plain, **options})


def alarm_line(name: str, message: str) -> Text:
    """An alarm, red."""
    return Text.assemble(("alarm", "bold red"), f" {name}: {message}")


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` characters: of a longer one, its beginning and its end."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"
