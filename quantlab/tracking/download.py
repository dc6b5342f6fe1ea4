"""Runs out of an MLflow store, as folders: those that a trial and a sweep leave.

What a store says of a run is data of others: its name and tags lead nowhere but into the folder that is asked
for.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from quantlab.cli.secrets import signed_in, without_password
from quantlab.tracking.address import sqlite_file, store_uri
from quantlab.tracking.database import first_use
from quantlab.tracking.mlflow_steps import PARENT
from quantlab.tracking.opening import first_request, set_mlflow_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowEntity

KEY = re.compile(
    "[0-9a-f]{64}(-[0-9a-z]{1,8})?"
)  # the name of a trial's folder: its key, and perhaps a timing
NAME_LENGTH, NAME_BYTES = 100, 200


def fetch(place: str, run_id: str, root: Path) -> Path:
    """Downloads a trial's files, or those of a sweep and of its trials, laid out as a sweep leaves them.

    ``place`` is an SQLite file's path or a URI. Returns the trial's or the sweep's folder under ``root``.
    Raises ValueError where there is no such run, it has no files, or names others than a trial has, and
    ConnectionError where nothing answers.
    """
    uri = store_uri(place)
    set_mlflow_environment()
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise ConnectionError(f"there is no MLflow store {file}")
    from mlflow import MlflowClient

    with signed_in(uri) as address:
        with first_use(address), first_request(uri):
            client = MlflowClient(tracking_uri=address)
            client.search_experiments(max_results=1)
        return _fetched(client, uri, run_id, root)


def run_folder_name(name: str) -> str:
    """A run's name as that of a folder: plain letters and few of them."""
    plain = re.sub(r"[^\w=.,() -]", "_", name).lstrip(".")[:NAME_LENGTH]
    return plain.encode()[:NAME_BYTES].decode(errors="ignore").strip() or "trial"


def _fetched(client: "MlflowClient", uri: str, run_id: str, root: Path) -> Path:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"there is no run {run_id!r} in {without_password(uri)}: {error.message}") from error
    if "sweep_parent" not in run.data.tags:
        return _downloaded(client, run, root / run_id / run_folder_name(run.info.run_name or ""))
    token: str | None = None
    while token != "":
        page = client.search_runs([run.info.experiment_id], f"tags.`{PARENT}` = '{run_id}'", page_token=token)
        for child in page:
            if "key" in child.data.tags:  # it finished
                key = child.data.tags.get("identity", "").rpartition("/")[2]
                if not KEY.fullmatch(key):
                    raise ValueError(f"the run {child.info.run_id} has the key {key!r}, which is no trial's")
                _downloaded(client, child, root / "trials" / key)
        token = page.token or ""
    return _downloaded(client, run, root / "sweeps" / run_id)


def _downloaded(client: "MlflowClient", run: "MlflowEntity", folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for item in client.list_artifacts(run.info.run_id):
        if item.is_dir:
            continue  # a trial's and a sweep's files lie side by side
        if Path(item.path).name != item.path:
            raise ValueError(
                f"the run {run.info.run_id} has a file {item.path!r}: no name of a file in its folder"
            )
        client.download_artifacts(run.info.run_id, item.path, str(folder))
    if not any(folder.iterdir()):
        raise ValueError(f"the run {run.info.run_id} ({run.info.run_name}, {run.info.status}) has no files")
    return folder
