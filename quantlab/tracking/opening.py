"""What MLflow needs before it is imported, and whether a server answers at all."""

import os
import urllib.request

HEALTH_TIMEOUT_S = 4.0
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def prepare(uri: str) -> None:
    """Sets MLflow's environment where it is not set. Raises ConnectionError where a server does not answer."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if uri.startswith("http"):
        require_healthy(uri)


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
