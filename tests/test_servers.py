"""What docker-compose.yml runs does run: the same commands on a real Postgres, with other addresses."""

import base64
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from servers import BACKEND, Postgres, Server, mlflow_server, optuna_dashboard, service, without_password

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

RUNS = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.fixture(scope="module")
def databases(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The URIs of the databases, made and filled as the first start of docker-compose.yml does it."""
    pytest.importorskip("optuna", reason="needs optuna: pip install -e '.[dashboard]'")
    settings = {"POSTGRES_PASSWORD": postgres.password}
    first = service("postgres", settings, {})
    postgres.sql(f"CREATE DATABASE {first.environment['POSTGRES_DB']}")
    postgres.sql(*first.configs.values())
    schema = service("schema", settings, {"postgres/": f"127.0.0.1:{postgres.port}/"})
    for _ in ("the first start", "every other"):
        done = schema.run(schema.command, tmp_path_factory.mktemp("schema"))
        assert done.returncode == 0, done.stderr
    return {name: postgres.uri(name) for name in ("mlflow", "optuna", "auth")}


@pytest.fixture(scope="module")
def mlflow(databases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with mlflow_server(databases["mlflow"], tmp_path_factory.mktemp("mlflow")) as server:
        yield server


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_run_and_its_artifact_arrive_and_outlive_the_server(mlflow: Server, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow.uri)
    run = client.create_run(client.create_experiment("through the proxy")).info
    assert run.artifact_uri.startswith("mlflow-artifacts:/")
    client.log_metric(run.run_id, "accuracy", 0.5)
    client.log_text(run.run_id, "what was sent", "note.txt")
    (file,) = (mlflow.folder / "artifacts").rglob("note.txt")
    assert file.read_text() == "what was sent"

    mlflow.kill()
    with pytest.raises(urllib.error.URLError, match="refused"):
        status(f"{mlflow.uri}/health")
    mlflow.start()
    assert client.get_run(run.run_id).data.metrics == {"accuracy": 0.5}
    assert (
        Path(client.download_artifacts(run.run_id, "note.txt", str(tmp_path))).read_text() == "what was sent"
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost:5000", 200), ("mlflow:5000", 200), ("evil.example", 403), ("10.0.0.1:5000", 403)],
)
def test_only_known_hosts_are_answered(mlflow: Server, host: str, expected: int) -> None:
    assert status(f"{mlflow.uri}{RUNS}", Host=host) == expected


def test_nobody_can_read_the_password_off_the_processes(mlflow: Server, postgres: Postgres) -> None:
    process = psutil.Process(mlflow.pid)
    family = [process, *process.children(recursive=True)]
    assert len(family) > 1 and any(BACKEND.split("@")[0] in word for word in process.cmdline())
    assert not any(postgres.password in word for member in family for word in member.cmdline())
    assert postgres.password not in mlflow.log.read_text()


def test_a_login_can_be_asked_for(databases: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]: pip install -e '.[server]'")
    login = {"MLFLOW_ADMIN_PASSWORD": "a password: with $igns", "MLFLOW_SECRET_KEY": "not a secret here"}
    with mlflow_server(databases["mlflow"], tmp_path, databases["auth"], **login) as server:
        answers = {
            password: status(
                f"{server.uri}{RUNS}", Authorization=f"Basic {base64.b64encode(password.encode()).decode()}"
            )
            for password in ("admin:a password: with $igns", "admin:password1234")
        }
        assert list(answers.values()) == [200, 401]
        assert status(f"{server.uri}{RUNS}") == 401 and status(f"{server.uri}/health") == 200


def test_a_wrong_password_is_an_error_within_seconds(postgres: Postgres, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs optuna: pip install -e '.[dashboard]'")
    address, _ = without_password(postgres.uri("postgres"))
    schema = service(
        "schema", {"POSTGRES_PASSWORD": "wrong"}, {f"{BACKEND}/optuna": address, f"{BACKEND}/mlflow": address}
    )
    start = time.monotonic()
    done = schema.run(schema.command, tmp_path)
    assert done.returncode != 0 and "password authentication failed" in done.stderr
    assert time.monotonic() - start < 60


def test_the_dashboard_shows_a_study(databases: dict[str, str], tmp_path: Path) -> None:
    import optuna

    with optuna_dashboard(databases["optuna"], tmp_path) as server:
        optuna.create_study(storage=databases["optuna"], study_name="which bits")
        with urllib.request.urlopen(f"{server.uri}/api/studies", timeout=30) as answer:
            assert b"which bits" in answer.read()
