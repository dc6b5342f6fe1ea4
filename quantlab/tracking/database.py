"""The first use of a database: its tables are made once, by one process."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from quantlab.cli.secrets import without_password
from quantlab.storage.files import cache_dir, digest
from quantlab.tracking.address import SQLITE, sqlite_file

if TYPE_CHECKING:
    from sqlalchemy import Connection

CONNECT_TIMEOUT_S = 4
LOCK_NUMBER = 0x9A47AB  # any number that all of quantlab's processes agree on
RUNS, STUDIES = "experiments", "studies"  # tables that only MLflow, and only Optuna, has


@contextmanager
def first_use(uri: str) -> Iterator[None]:
    """Holds back other processes while this one opens a database for the first time: MLflow then makes its
    tables, and two processes that make the same tables at once fail. Does nothing for a server, which did so
    when it started.

    Raises ConnectionError, at once, where the database cannot be opened (MLflow itself would try for
    minutes), or has Optuna's tables.
    """
    if uri.startswith("sqlite"):
        with _file_lock(uri), _open(uri, {}) as (_, tables):
            _require_no_studies(uri, tables)
            yield
        _remove_misread_folder(uri)
    elif uri.startswith("postgresql"):
        from sqlalchemy import text

        with _open(uri, {"connect_timeout": CONNECT_TIMEOUT_S}) as (connection, tables):
            _require_no_studies(uri, tables)
            connection.execute(
                text(f"select pg_advisory_lock({LOCK_NUMBER})")
            )  # released with the connection
            yield
    else:
        yield


def _remove_misread_folder(uri: str) -> None:
    """Removes the empty folder that MLflow makes where it takes a URL's quoted path for a path."""
    misread, file = Path(uri.removeprefix(SQLITE)).parent, sqlite_file(uri)
    if file is not None and misread != file.parent:
        with suppress(OSError):  # none was made, or it is not empty
            os.removedirs(misread)


def _require_no_studies(uri: str, tables: Collection[str]) -> None:
    if STUDIES in tables and RUNS not in tables:
        raise ConnectionError(
            f"{without_password(uri)} is Optuna's database: give MLflow another tracking.uri"
        )


def _file_lock(uri: str) -> FileLock:
    path = cache_dir() / "locks" / digest([uri])[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


@contextmanager
def _open(uri: str, arguments: dict[str, object]) -> Iterator[tuple["Connection", list[str]]]:
    from sqlalchemy import create_engine, inspect, make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    url = make_url(uri)
    if url.database and url.get_backend_name() == "sqlite":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args=arguments, poolclass=NullPool)
    try:
        connection = engine.connect()
        tables = inspect(connection).get_table_names()
    except (SQLAlchemyError, ImportError) as error:
        reason = without_password(str(getattr(error, "orig", error)))
        raise ConnectionError(f"the database {without_password(uri)} cannot be opened: {reason}") from error
    try:
        yield connection, tables
    finally:
        connection.close()
        engine.dispose()
