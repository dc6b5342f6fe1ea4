"""MLflow: an SQLite file by default, or a server."""

import os
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.result import Metric, TrialResult
from quantlab.tracking.base import Run, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
HEALTH_TIMEOUT_S = 4.0
PARAM_LIMIT, PARAMS_A_BATCH, TAG_LIMIT = 6000, 100, 8000  # MLflow's own
CUT = " [cut short: the terminal has all of it]"
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


@dataclass(frozen=True, kw_only=True)
class MLflow(Tracker):
    """Records trials in an MLflow store, by absolute URI: ``sqlite:////...`` or ``http://...``.

    A server keeps artifacts where it was told to; those of an SQLite file lie in ``mlartifacts`` beside it.
    """

    uri: str
    experiment: str

    def __post_init__(self) -> None:
        if not self.uri.startswith((SQLITE, "http://", "https://", "postgresql")):
            raise ValueError(f"tracking.uri must start with {SQLITE}/, http:// or https://, got {self.uri!r}")
        if self.uri.startswith(SQLITE) and not Path(self.uri.removeprefix(SQLITE)).is_absolute():
            raise ValueError(f"tracking.uri must name an absolute path (four slashes), got {self.uri!r}")

    @contextmanager
    def start(self, name: str, params: dict[str, Any]) -> Iterator[Run]:
        """Raises ConnectionError where the server does not answer within seconds."""
        client = self._client()
        run = client.create_run(self._experiment_id(client), run_name=name)
        run_id = run.info.run_id
        try:
            _log_params(client, run_id, params)
            yield MLflowRun(client, run_id)
        except BaseException as error:
            client.set_tag(run_id, "error", _fitting(f"{type(error).__name__}: {error}"))
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")

    def _client(self) -> "MlflowClient":
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        if self.uri.startswith("http"):
            require_healthy(self.uri)
        elif self.uri.startswith(SQLITE):
            Path(self.uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient  # seconds to import: not paid where tracking is off

        return MlflowClient(tracking_uri=self.uri)

    def _artifacts(self) -> str | None:
        database = Path(self.uri.removeprefix(SQLITE))
        return (database.parent / "mlartifacts").as_uri() if self.uri.startswith(SQLITE) else None

    def _experiment_id(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return client.create_experiment(self.experiment, artifact_location=self._artifacts())
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(self.experiment)  # another process was quicker
        assert found is not None
        return found.experiment_id


class MLflowRun(Run):
    """One MLflow run."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, result: TrialResult, files: Sequence[Path]) -> None:
        """All metrics and tags in one request, then the files."""
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in result.tags.items()]
        self._client.log_batch(self._run_id, metrics=list(_entities(result.metrics)), tags=tags)
        for file in files:
            self._client.log_artifact(self._run_id, str(file))


def require_healthy(uri: str) -> None:
    """Raises ConnectionError, with a way to start one, unless an MLflow server answers at ``uri`` within seconds."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_S) as answer:
            if answer.status == 200:
                return
            problem = f"status {answer.status}"
    except OSError as error:
        problem = str(error)
    raise ConnectionError(
        f"no MLflow server answers at {uri} ({problem}); start one with `mlflow server --port 5000`, or use "
        "tracking=sqlite or tracking=off"
    )


def _fitting(message: str) -> str:
    """A message as a tag's value; what had to be cut off says so."""
    return message if len(message) <= TAG_LIMIT else f"{message[: TAG_LIMIT - len(CUT)]}{CUT}"


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    """The config's values as params. What is too long for one is in the config artifact, and is not cut short here."""
    from mlflow.entities import Param

    fitting = [Param(name, str(value)) for name, value in params.items() if len(str(value)) <= PARAM_LIMIT]
    for start in range(0, len(fitting), PARAMS_A_BATCH):
        client.log_batch(run_id, params=fitting[start : start + PARAMS_A_BATCH])


def _entities(metrics: Mapping[str, Metric]) -> Iterator[Any]:
    from mlflow.entities import Metric as Entity

    now = int(1000 * time.time())
    for name, value in metrics.items():
        for step, number in enumerate(value if isinstance(value, list) else [value]):
            if number is not None:
                yield Entity(name, number, now, step)
