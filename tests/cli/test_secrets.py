"""A password is used, and is nowhere afterwards."""

import os
from pathlib import Path

import pytest
import yaml

from quantlab.cli.secrets import clean, signed_in, without_password, without_passwords

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:sesame@host:5000/p", "http://me@host:5000/p"),
        ("no https://me:se%40same@host, then ftp://a:b@c", "no https://me@host, then ftp://a@c"),
        ("http://me:ses@me@host", "http://me@host"),
        ("postgresql+psycopg2://me:se/same@h:1/db", "postgresql+psycopg2://me@h:1/db"),
        ("postgresql+psycopg2://me@h/db?password=sesame&a=b", "postgresql+psycopg2://me@h/db?a=b"),
        ("[tracking.uri=http://:sesame@host]", "[tracking.uri=http://@host]"),
        ("http://localhost:5000/recipe@model", "http://localhost:5000/recipe@model"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("sqlite:////home/x:y@z/mlflow.db", "sqlite:////home/x:y@z/mlflow.db"),
        ("model=a:b@c", "model=a:b@c"),
    ],
)
def test_no_password_is_shown_and_nothing_else_is_hidden(text: str, shown: str) -> None:
    assert without_password(text) == shown
    assert without_passwords({"a": [text, 1, None]}) == {"a": [shown, 1, None]}


def test_hydras_files_are_cleaned(tmp_path: Path) -> None:
    tree = {"tracking": {"uri": "http://mé:sesame@host", "n": 1}, "task": ["a b", True, None, "8"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "other.yaml").write_text("kept: as   it is # stands")
    clean(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {
        **tree,
        "tracking": {"uri": "http://mé@host", "n": 1},
    }
    assert (tmp_path / "other.yaml").read_text() == "kept: as   it is # stands"


@pytest.mark.parametrize(
    ("uri", "outside", "given", "login"),
    [
        ("http://me:se%40same@host:1/p", {}, "http://host:1/p", ("me", "se@same")),
        ("http://me@host", {PASSWORD: "sesame"}, "http://host", ("me", "sesame")),
        ("http://host", {USER: "you", PASSWORD: "sesame"}, "http://host", ("you", "sesame")),
        ("http://me:own@host", {USER: "you", PASSWORD: "sesame"}, "http://host", ("me", "own")),
        ("postgresql+psycopg2://me:own@host/db", {}, "postgresql+psycopg2://me:own@host/db", (None, None)),
    ],
)
def test_mlflow_is_handed_the_login_while_it_works(
    monkeypatch: pytest.MonkeyPatch, uri: str, outside: dict[str, str], given: str, login: tuple[str, str]
) -> None:
    for name in (USER, PASSWORD):
        monkeypatch.delenv(name, raising=False)
    for name, value in outside.items():
        monkeypatch.setenv(name, value)
    with signed_in(uri) as address:
        assert address == given and (os.environ.get(USER), os.environ.get(PASSWORD)) == login
    assert {name: os.environ[name] for name in (USER, PASSWORD) if name in os.environ} == outside
