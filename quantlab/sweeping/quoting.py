"""Values in the grammar of Hydra's overrides, so that Hydra reads back what was meant."""

import math
import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")  # a text that needs no quotes, unless it is one of WORDS
WORDS = frozenset({"null", "true", "false", "inf", "nan"})  # what Hydra reads as something else than a text
KEY = re.compile(r"[A-Za-z_*][A-Za-z0-9_.*-]*")  # of a dictionary: Hydra's grammar knows no quotes there
INTERPOLATION = re.compile(r"(\\*)\$\{")


def in_hydra(value: Any) -> str:
    """A value of YAML as the right side of an override: ``key={in_hydra(value)}`` sets exactly this value.

    A text stands bare where Hydra reads it as a text: ``minmax``, but ``"8"``, ``"null"`` and ``"a, b"``.
    ``${`` in a text stands for itself and interpolates nothing. Raises ValueError for a key of a dictionary
    that Hydra's grammar cannot hold.
    """
    return value if isinstance(value, str) and bare(value) else _nested(value)


def bare(text: str) -> bool:
    """Whether Hydra reads the text, without quotes, as this text."""
    return BARE.fullmatch(text) is not None and text.lower() not in WORDS


def _nested(value: Any) -> str:
    """The same, with quotes around every text: in lists they are easier to read."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{_nested(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_nested, value)) + "]"
    if isinstance(value, str):
        literal = INTERPOLATION.sub(lambda found: found[1] * 2 + r"\${", value)
        return QuotedString(text=literal, quote=Quote.double).with_quotes()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return repr(value)


def _key(key: Any) -> str:
    if not isinstance(key, str) or not KEY.fullmatch(key) or key.lower() in WORDS:
        raise ValueError(f"Hydra's grammar cannot hold the key {key!r}: use letters, digits, _ . - and *")
    return key
