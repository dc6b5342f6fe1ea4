"""Links into MLflow's web pages that open on the runs in question, not on the overview for GenAI.

Read off the pages of MLflow 3.17: ``workflowType`` in the URL chooses the pages for trained models, and
``viewStateShareKey`` a table that somebody saved in a tag of the experiment: filter, order and columns.
"""

import json
import shlex
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from quantlab.storage.files import digest
from quantlab.tracking.mlflow_limits import equality_filter
from quantlab.tracking.tracker import RunsTable

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = ("mlflow.experimentKind", "custom_model_development")  # a tag of an experiment: no GenAI
SAVED_TABLE = "mlflow.sharedViewState."  # begins the tag that holds a saved table
LOCAL = "http://127.0.0.1:5000"  # where ``mlflow ui`` serves by default
WORKFLOW = {"workflowType": "machine_learning"}


def lines(address: str, path: str) -> tuple[str, ...]:
    """A URL of a server; for a database, the command that serves it and then the URL."""
    if address.startswith("http"):
        return (f"{address.rstrip('/')}/{path}",)
    return f"mlflow ui --backend-store-uri {shlex.quote(address)}", f"{LOCAL}/{path}"


def run_path(experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{urlencode(WORKFLOW)}"


def save_table(client: "MlflowClient", experiment_id: str, table: RunsTable) -> str:
    """Saves a table in the experiment, once however often it is saved; returns the path of its page."""
    key = digest([table.tag, table.value])[:16]
    client.set_experiment_tag(experiment_id, *KIND)
    client.set_experiment_tag(experiment_id, SAVED_TABLE + key, json.dumps(_state(table)))
    return f"#/experiments/{experiment_id}/runs?{urlencode({**WORKFLOW, 'viewStateShareKey': key})}"


def _state(table: RunsTable) -> dict[str, object]:
    """The table in the words of MLflow's page. Ordered by a metric, it lists child runs without their
    parents, so that nothing has to be expanded."""
    columns = [
        f"{kind}.`{name}`"
        for kind, names in (("metrics", table.metrics), ("params", table.params), ("tags", table.tags))
        for name in names
    ]
    return {
        "searchFilter": equality_filter(f"tags.{table.tag}", table.value),
        "orderByKey": f"metrics.`{table.order_by}`",
        "orderByAsc": table.ascending,
        "selectedColumns": columns,
    }
