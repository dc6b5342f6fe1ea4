"""The first use of a database: its tables are made once, by one process."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from quantlab.cache import cache_dir, digest

if TYPE_CHECKING:
    from sqlalchemy import Connection

CONNECT_TIMEOUT_S = 4
LOCK_NUMBER = 0x9A47AB  # any number that all of quantlab's processes agree on


@contextmanager
def first_use(uri: str) -> Iterator[None]:
    """Holds back other processes while this one opens a database for the first time: MLflow then makes its tables,
    and two processes that make the same tables at once fail. Does nothing for a server, which did so when it started.

    Raises ConnectionError, at once, where the database cannot be opened: MLflow itself would try for minutes.
    """
    if uri.startswith("sqlite"):
        with _file_lock(uri), _open(uri, {}):
            yield
    elif uri.startswith("postgresql"):
        from sqlalchemy import text

        with _open(uri, {"connect_timeout": CONNECT_TIMEOUT_S}) as connection:
            connection.execute(text(f"select pg_advisory_lock({LOCK_NUMBER})"))  # released with the connection
            yield
    else:
        yield


def shown(uri: str) -> str:
    """A URI without its password."""
    return re.sub(r"(://[^/@]*?):[^@]*@", r"\1:***@", uri)


def _file_lock(uri: str) -> FileLock:
    path = cache_dir() / "locks" / digest([uri])[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


@contextmanager
def _open(uri: str, arguments: dict[str, object]) -> Iterator["Connection"]:
    from sqlalchemy import create_engine, inspect, make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    url = make_url(uri)
    if url.database and url.get_backend_name() == "sqlite":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args=arguments, poolclass=NullPool)
    try:
        connection = engine.connect()
        inspect(connection).get_table_names()
    except (SQLAlchemyError, ImportError) as error:
        raise ConnectionError(f"the database {shown(uri)} cannot be opened: {getattr(error, 'orig', error)}") from error
    try:
        yield connection
    finally:
        connection.close()
        engine.dispose()
