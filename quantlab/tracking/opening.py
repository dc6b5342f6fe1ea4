"""What MLflow needs before it is imported, and a server that is asked once whether it answers."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from quantlab.cli.secrets import PASSWORD, USER, variables, without_password

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
AT_ONCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}  # of a first request; seconds
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")


def set_mlflow_environment() -> None:
    """Sets MLflow's environment where it is not set."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


@contextmanager
def first_request(uri: str) -> Iterator[None]:
    """For the first request to a store: an answer or ConnectionError within seconds, with a way to go on.

    The request is MLflow's own, so that whatever address, login and certificate MLflow takes is taken here.
    """
    from alembic.util import CommandError  # of a database's tables
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with variables(AT_ONCE):
            yield
    except (MlflowException, CommandError, SQLAlchemyError) as error:
        raise ConnectionError(_problem(without_password(uri), error)) from error


def _problem(address: str, error: Exception) -> str:
    reason = without_password(str(_first(error))).splitlines()[0]
    if not address.startswith("http"):
        return f"the MLflow store {address} cannot be used: {reason}"
    if getattr(error, "error_code", None) in REFUSED or re.search("error code 40[13]", str(error)):
        return f"the MLflow server at {address} does not let us in ({reason}); set {USER} and {PASSWORD}"
    return (
        f"no MLflow server answers at {address} ({reason}); start one with `mlflow server --port 5000`, or "
        "use tracking=sqlite or tracking=off"
    )


def _first(error: BaseException) -> BaseException:
    """What an error began with."""
    before = error.__cause__ or error.__context__
    return error if before is None else _first(before)
