"""Runs out of an MLflow store, as folders: those that a trial and a sweep leave."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from quantlab.tracking.database import first_use, shown
from quantlab.tracking.mlflow import SQLITE
from quantlab.tracking.opening import prepare

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowEntity


def fetch(uri: str, run_id: str, root: Path) -> Path:
    """Downloads a trial's files, or those of a sweep and of its trials, laid out as a sweep leaves them.

    Returns the trial's or the sweep's folder under ``root``. Raises ValueError where there is no such run, or it has no
    files, and ConnectionError where nothing answers.
    """
    from mlflow.exceptions import MlflowException

    client = _reader(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"there is no run {run_id!r} in {shown(uri)}: {error.message}") from error
    if "sweep_parent" not in run.data.tags:
        name = re.sub(r"[^\w=.,() -]", "_", run.info.run_name or "").lstrip(".") or "trial"
        return _downloaded(client, run, root / run_id / name)
    query = f"tags.`mlflow.parentRunId` = '{run_id}'"
    token: str | None = None
    while token != "":
        page = client.search_runs([run.info.experiment_id], query, page_token=token)
        for child in page:
            if key := child.data.tags.get("key"):
                _downloaded(client, child, root / "trials" / key)
        token = page.token or ""
    return _downloaded(client, run, root / "sweeps" / run_id)


def _reader(uri: str) -> "MlflowClient":
    """A client for a store that is there already."""
    prepare(uri)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise ConnectionError(f"there is no MLflow store {uri}")
    from mlflow import MlflowClient

    with first_use(uri):
        return MlflowClient(tracking_uri=uri)


def _downloaded(client: "MlflowClient", run: "MlflowEntity", folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for item in client.list_artifacts(run.info.run_id):
        client.download_artifacts(run.info.run_id, item.path, str(folder))
    if not any(folder.iterdir()):
        raise ValueError(f"the run {run.info.run_id} ({run.info.run_name}, {run.info.status}) has no files")
    return folder
