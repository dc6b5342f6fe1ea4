"""Hydra reads back what was quoted: any value of YAML, in an override and in a trial's config."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from properties import properties

from quantlab.sweeping.quoting import in_hydra

PARSER = OverridesParser.create()
SPECIAL = "\\\"'`$%{}[]()<>=,:;#|&?*!~@+-./ \t\n\r_eE0189aéλ资\u2028"
TEXTS = st.text(SPECIAL, max_size=12) | st.text(max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
KEYS = st.sampled_from(["match", "bits", "a.b", "*.ffn", "x-1"])
VALUES = st.recursive(
    SCALARS, lambda item: st.lists(item, max_size=3) | st.dictionaries(KEYS, item, max_size=3)
)
YAML_TEXTS = (
    "null",
    "true",
    "False",
    "1e3",
    "8",
    "inf",
    "NaN",
    "[x]",
    "{x}",
    "",
    " ",
    "a, v=2 (old) #1",
    "~/x",
    "50%41",
    "what?",
    "données",
    "${HOME}",
    r"\${x}",
    "a\\",
    'a\\"',
    '"quoted"',
    "'",
    "$HOME",
    "int(3)",
    "a:b",
    "é",
    "x ",
)


def read(text: str) -> Any:
    """The value that a trial's config holds after ``key=<text>``."""
    override = PARSER.parse_override(f"key={text}")
    assert not override.is_sweep_override()
    config = OmegaConf.create({"key": None})
    OmegaConf.update(config, "key", override.value(), merge=True)
    return OmegaConf.to_container(config, resolve=True)["key"]


def alike(found: Any, value: Any) -> bool:
    return found == value and repr(found) == repr(value)  # 1, 1.0 and True are equal, and not alike


@properties
@given(VALUES)
@example({"match": [["${", "\\"]]})
def test_hydra_reads_back_what_was_quoted(value: Any) -> None:
    assert alike(read(in_hydra(value)), value)


@pytest.mark.parametrize("text", YAML_TEXTS, ids=repr)
def test_a_text_of_yaml_arrives_as_this_text(text: str) -> None:
    assert alike(read(in_hydra(text)), text) and alike(read(in_hydra([text])), [text])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("minmax", "minmax"),
        ("/data/glue", "/data/glue"),
        ("8", '"8"'),
        (8, "8"),
        (["*.in"], '["*.in"]'),
        (None, "null"),
    ],
)
def test_quotes_stand_only_where_they_are_needed(value: Any, text: str) -> None:
    assert in_hydra(value) == text


def test_a_key_that_hydra_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold the key 'a b'"):
        in_hydra({"a b": 1})
