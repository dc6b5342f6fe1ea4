"""Links into MLflow's pages."""

import json
from types import SimpleNamespace

from quantlab.tracking.mlflow_pages import KIND, SAVED_TABLE, lines, save_table
from quantlab.tracking.tracker import RunsTable


def test_a_table_is_saved_under_the_key_of_its_link() -> None:
    tags: dict[str, str] = {}
    client = SimpleNamespace(set_experiment_tag=lambda _, name, value: tags.update({name: value}))
    table = RunsTable(tag="sweep", value="it's", order_by="f1", metrics=("f1",), params=("method.k",))
    path = save_table(client, "7", table)  # type: ignore[arg-type]
    assert save_table(client, "7", table) == path and len(tags) == 2 and tags[KIND[0]] == KIND[1]  # type: ignore[arg-type]
    page, _, key = path.partition("&viewStateShareKey=")
    assert page == "#/experiments/7/runs?workflowType=machine_learning"
    assert json.loads(tags[SAVED_TABLE + key]) == {
        "searchFilter": 'tags.sweep = "it\'s"',
        "orderByKey": "metrics.`f1`",
        "orderByAsc": False,
        "selectedColumns": ["metrics.`f1`", "params.`method.k`"],
    }


def test_a_server_needs_no_command() -> None:
    assert lines("https://host/mlflow/", "#/x") == ("https://host/mlflow/#/x",)
    command, url = lines("sqlite:////a b/mlflow.db", "#/x")
    assert command == "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    assert url == "http://127.0.0.1:5000/#/x"
