"""An MLflow store and its experiment, found once a process."""

import shlex
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from quantlab.cli.secrets import signed_in, without_password
from quantlab.tracking import mlflow_pages as pages
from quantlab.tracking.address import sqlite_file
from quantlab.tracking.database import first_use
from quantlab.tracking.opening import first_request, set_mlflow_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient

DELETED = "deleted"  # MLflow's own word


@dataclass(frozen=True)
class MlflowStore:
    """An experiment of an MLflow store."""

    client: "MlflowClient"
    experiment_id: str


@cache
def connection(uri: str, experiment: str) -> MlflowStore:
    """A store and its experiment, found once a process.

    Raises ConnectionError, within seconds, where nothing answers or lets us in, or the experiment was
    deleted.
    """
    set_mlflow_environment()
    from mlflow import MlflowClient  # seconds to import: not paid where tracking is off

    with signed_in(uri) as address, first_use(address):
        with first_request(uri):
            client = MlflowClient(tracking_uri=address)
            known = client.get_experiment_by_name(experiment)
        if known is not None and known.lifecycle_stage == DELETED:
            raise ConnectionError(
                f"the experiment {experiment!r} of {without_password(uri)} is deleted: choose another "
                f"tracking.experiment, or restore it: "
                f"MLFLOW_TRACKING_URI={shlex.quote(without_password(uri))} "
                f"mlflow experiments restore --experiment-id {known.experiment_id}"
            )
        return MlflowStore(client, known.experiment_id if known else _new_experiment(client, uri, experiment))


def _new_experiment(client: "MlflowClient", uri: str, experiment: str) -> str:
    from mlflow.exceptions import MlflowException

    file = sqlite_file(uri)
    try:
        artifacts = (file.parent / "mlartifacts").as_uri() if file else None
        return client.create_experiment(experiment, artifacts, dict([pages.KIND]))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.get_experiment_by_name(experiment)  # another process was quicker
    assert known is not None
    return known.experiment_id
