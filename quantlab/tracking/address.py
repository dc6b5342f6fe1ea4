"""Where runs are recorded: a file's path, or a URI, built and read by SQLAlchemy's rules."""

from pathlib import Path

from quantlab.cli.secrets import without_password

SQLITE, POSTGRES = "sqlite:///", "postgresql+psycopg2://"  # a plain postgresql:// means another driver by now


def store_uri(place: str) -> str:
    """The URI of what ``tracking.uri`` names: an SQLite file by its absolute path, or a URI already.

    Raises ValueError where MLflow does not know it, or it is relative: such a file follows the working
    folder.
    """
    if place.startswith("/"):
        return sqlite_url(Path(place))
    if not place.startswith((SQLITE, "http://", "https://", POSTGRES)):
        hint = " (did you mean postgresql+psycopg2://?)" if place.startswith("postgres") else ""
        kinds = f"the absolute path of an SQLite file, {SQLITE}/, http://, https:// or {POSTGRES}"
        raise ValueError(f"tracking.uri must be or start with {kinds}, got {without_password(place)!r}{hint}")
    file = sqlite_file(place)
    if file is not None and not file.is_absolute():
        raise ValueError(f"tracking.uri must name an absolute path (four slashes), got {place!r}")
    return place


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file, whatever characters are in its path.

    Raises ValueError where the installed SQLAlchemy cannot write it so that it reads the same path back.
    """
    from sqlalchemy import URL, make_url

    url = URL.create("sqlite", database=str(path)).render_as_string()
    if make_url(url).database != str(path):
        raise ValueError(
            f"the path {str(path)!r} cannot be written as a URL of SQLAlchemy: take one without % and ?"
        )
    return url


def sqlite_file(uri: str) -> Path | None:
    """The file that an SQLite URL names; None for anything else."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "")
