"""Checks of what users write: every message says what came, what is allowed, and the nearest valid name."""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
POINTER = b"version https://git-lfs.github.com/spec/"  # how a Git LFS pointer begins


def nearest(name: str, allowed: Iterable[str], most: int = 3) -> str:
    """``" (did you mean 'x'?)"`` for the ``most`` closest of ``allowed``; empty where none is close."""
    matches = difflib.get_close_matches(str(name), list(allowed), n=most, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""


def one_of(field: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raises ValueError unless ``value`` is one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise ValueError(f"{field} must be one of {names}; got {value!r}{nearest(value, map(str, allowed))}")


def finite(field: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a number (not a bool), and neither infinite nor NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number, got {value!r}")


def at_least(field: str, value: Any, least: float) -> None:
    """Raises ValueError unless ``value`` is a finite number of at least ``least``."""
    finite(field, value)
    if value < least:
        raise ValueError(f"{field} must be at least {least}, got {value!r}")


def part(field: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a number between 0 and 1, and neither."""
    if isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"{field} must be between 0 and 1, got {value!r}")


def above(field: str, value: Any, bound: float) -> None:
    """Raises ValueError unless ``value`` is a finite number above ``bound``."""
    finite(field, value)
    if value <= bound:
        raise ValueError(f"{field} must be above {bound}, got {value!r}")


def share(field: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a number (not a bool) in ``[0, 1)``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{field} must be a share in [0, 1), got {value!r}")


def whole(field: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError unless ``value`` is an integer in ``[least, most]``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < least
        or (most is not None and value > most)
    ):
        bound = f"of at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{field} must be a whole number {bound}, got {value!r}")


def texts(field: str, values: Iterable[Any]) -> None:
    """Raises ValueError unless every value is a text, which YAML's ``[no, yes]`` and ``[0, 1]`` are not."""
    for value in values:
        if not isinstance(value, str):
            hint = "; YAML reads yes, no, on and off as booleans" if isinstance(value, bool) else ""
            raise ValueError(f"{field} must be texts, got {value!r}: quote it{hint}")


def can_name_hub_repository(path: str) -> bool:
    """Whether a path that is not there may be a name on the Hugging Face Hub: ``name`` or ``owner/name``."""
    local = Path(path).expanduser()
    missing = not local.exists() and (local.parent == Path() or not local.parent.is_dir())
    return missing and HUB_NAME.fullmatch(path) is not None


def refuse_pointer(path: Path) -> None:
    """Raises ValueError where Git LFS has put a pointer in place of the file."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull")


NAME_BYTES = 100  # two names and a digest fit in a file's name, which may have 255


def folder_name(field: str, value: Any) -> None:
    """Raises ValueError unless ``value`` can name a folder on any system, and stands in an MLflow filter as
    it is."""
    if not isinstance(value, str) or not value or value != fitting(value):
        near = fitting(value) if isinstance(value, str) else ""
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ValueError(
            f"{field} names a folder: letters, digits, _ + - = , ( ), inner blanks and dots, at most "
            f"{NAME_BYTES} bytes; got {value!r}{hint}"
        )


def fitting(text: str) -> str:
    """The nearest text that can name a file or folder: ``ablation-v2`` for ``ablation/v2``; a long one is
    cut."""
    allowed = re.sub(r"[^\w +=,().-]+", "-", text)
    return allowed.strip(" .").encode()[:NAME_BYTES].decode(errors="ignore").strip(" .")


def freeze(component: Any) -> None:
    """Turns the lists of a frozen dataclass (YAML has no tuples) into tuples, so that it can be hashed."""
    for field in fields(component):
        object.__setattr__(component, field.name, _frozen(getattr(component, field.name)))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
