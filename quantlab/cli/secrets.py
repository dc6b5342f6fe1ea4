"""Passwords: none is shown, written or sent along; whoever connects takes them from a URI or from the
environment."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"  # MLflow's own names
# scheme://user:password@host. What looks like host:port/path@... is none; a password with a slash ends at the
# first @.
IN_ADDRESS = re.compile(r"(://[^\s/:@]*):(?!\d{1,5}[/,'\"\]])(?:[^\s/]*@|[^\s@]*@)")
IN_QUERY = re.compile(r"([?&])(?:password|passwd|sslpassword)=[^&\s'\"]*&?")


def without_password(text: str) -> str:
    """A text in which the URIs name users and no passwords: ``http://me:secret@host`` becomes
    ``http://me@host``."""
    return IN_QUERY.sub(r"\1", IN_ADDRESS.sub(r"\1@", text))


def without_passwords(tree: Any) -> Any:
    """The same for all texts of a tree of mappings and lists."""
    if isinstance(tree, Mapping):
        return {name: without_passwords(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_passwords(value) for value in tree]
    return without_password(tree) if isinstance(tree, str) else tree


def clean(folder: Path) -> None:
    """Takes the passwords out of the YAML files of a folder, such as Hydra's ``.hydra``."""
    for path in folder.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        if without_password(text) != text:
            tree = without_passwords(yaml.safe_load(text))
            path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


@contextmanager
def signed_in(uri: str) -> Iterator[str]:
    """Hands a server's user and password to MLflow in its own variables while the block runs.

    Yields the URI that MLflow is to be given: of a server without either, of a database as it is.
    """
    parts = urlsplit(uri) if uri.startswith("http") else None
    if parts is None or parts.username is None:
        yield uri
        return
    password = os.environ.get(PASSWORD) if parts.password is None else unquote(parts.password)
    with variables({USER: unquote(parts.username), **({PASSWORD: password} if password is not None else {})}):
        yield parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
