"""Starts real servers on loopback for tests: Postgres, and the services of docker-compose.yml.

::

    def test_it(postgres: Postgres, tmp_path: Path) -> None:
        with mlflow_server(postgres.new_database(), tmp_path) as server:
            ...  # server.uri, server.kill(), server.start()
"""

import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import psutil
import pytest
import yaml

BACKEND = "postgresql+psycopg2://quantlab@postgres"
COMPOSE = Path(__file__).parents[1] / "docker-compose.yml"
LOOPBACK = "127.0.0.1"
START_S, STOP_S, POLL_S = 180.0, 30.0, 0.2  # limits for a busy machine; a start takes 5 s of work


@dataclass(frozen=True)
class Service:
    """A service of docker-compose.yml: its command and its environment."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    healthcheck: list[str] = field(default_factory=list)
    configs: dict[str, str] = field(default_factory=dict)

    def run(self, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs a command with the service's environment, without that of the tests."""
        return subprocess.run(
            command, env=self.surroundings(folder), cwd=folder, capture_output=True, text=True
        )

    def surroundings(self, folder: Path) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(folder), **self.environment}


def service(name: str, settings: Mapping[str, str], here: Mapping[str, str]) -> Service:
    """A service with the settings of an ``.env``. ``here`` maps its addresses and folders to the test's.

    Raises ValueError if the service does not name one of them.
    """
    compose = yaml.safe_load(COMPOSE.read_text())
    mounts = compose["services"][name].get("configs", [])
    contents = {mount["target"]: compose["configs"][mount["source"]]["content"] for mount in mounts}
    parts = {**compose["services"][name], "configs": contents}
    if absent := [text for text in here if text not in str(parts)]:
        raise ValueError(f"the service {name} of {COMPOSE.name} does not name {absent}")
    parts = _changed(
        _changed(parts, lambda text: interpolated(text, settings)), lambda text: _replaced(text, here)
    )
    command = parts.get("command", [])
    return Service(
        command=command if isinstance(command, list) else shlex.split(command),
        environment=parts["environment"],
        healthcheck=parts.get("healthcheck", {}).get("test", ["CMD"])[1:],
        configs=parts["configs"],
    )


def interpolated(text: str, settings: Mapping[str, str]) -> str:
    """Fills ``${NAME:?message}``, ``${NAME:-default}`` and ``${NAME:+text}`` as Compose does. Raises
    ValueError where Compose refuses."""

    def fill(match: re.Match[str]) -> str:
        name, operator, other = match.groups()
        value = settings.get(name, "")
        if operator == "?" and not value:
            raise ValueError(f"required variable {name} is missing a value: {other}")
        return {"?": value, "-": value or other, "+": other if value else ""}[operator]

    return re.sub(r"\$\{(\w+):([?+-])([^}]*)\}", fill, text)


def _replaced(text: str, here: Mapping[str, str]) -> str:
    pattern = "|".join(map(re.escape, here))
    return re.sub(pattern, lambda match: here[match[0]], text) if here else text


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The same tree with every string changed."""
    if isinstance(value, dict):
        return {key: _changed(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_changed(part, change) for part in value]
    return change(value) if isinstance(value, str) else value


class Server:
    """A running service with its children, one process group. Its output is in ``log``."""

    def __init__(self, service: Service, folder: Path, port: int, user: str | None = None) -> None:
        self.service, self.folder, self.port, self.user = service, folder, port, user
        self.uri, self.log = f"http://{LOOPBACK}:{port}", folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the server and waits for its health check. Raises RuntimeError with the output if it ends
        instead."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.service.command,
                env=self.service.surroundings(self.folder),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **identity(self.user),
            )
        deadline = time.monotonic() + START_S
        while not self.healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(
                    f"{shlex.join(self.service.command)} did not start:\n{self.log.read_text()[-6000:]}"
                )
            time.sleep(POLL_S)

    def healthy(self) -> bool:
        """True if the service's own health check passes."""
        with suppress(OSError), socket.create_connection((LOOPBACK, self.port), timeout=1):
            return self.service.run(self.service.healthcheck, self.folder).returncode == 0
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the server and its workers, then SIGKILL to those that have not ended in time."""
        if self._process is None:
            return
        for attempt in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, attempt)
            deadline = time.monotonic() + STOP_S
            while members(self._process.pid) and time.monotonic() < deadline:
                time.sleep(POLL_S / 4)
        self._process.wait(STOP_S)
        self._process = None


def members(group: int) -> list[int]:
    """The ids of a group's living processes. Some may outlive the first one."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                found.append(process.pid)
    return found


def identity(user: str | None) -> dict[str, Any]:
    """Popen's arguments that run a process as another user."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(server: Server, end: int = signal.SIGKILL) -> Iterator[Server]:
    """Starts the server and ends all its processes at the exit."""
    try:
        server.start()
        yield server
    finally:
        server.kill(end)


@contextmanager
def mlflow_server(backend_uri: str, folder: Path, auth_uri: str = "", **settings: str) -> Iterator[Server]:
    """Serves MLflow as docker-compose.yml does, from any database, with its artifacts in ``folder``.
    ``settings`` are those of an ``.env``."""
    port = free_port()
    backend, password = without_password(backend_uri)
    here = {
        f"{BACKEND}/mlflow": backend,
        f"{BACKEND}/auth": without_password(auth_uri or backend_uri)[0],
        " /artifacts": f" {folder}/artifacts",
        "/auth.ini": f"{folder}/auth.ini",
        "0.0.0.0": LOOPBACK,
        "5000": str(port),
    }
    mlflow = service("mlflow", {"POSTGRES_PASSWORD": password, **settings}, here)
    (folder / "auth.ini").write_text(mlflow.configs["/auth.ini"])
    with serving(Server(mlflow, folder, port)) as server:
        yield server


@contextmanager
def optuna_dashboard(storage_uri: str, folder: Path) -> Iterator[Server]:
    """Serves optuna-dashboard as docker-compose.yml does, from any database with Optuna's tables."""
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard: pip install -e '.[dashboard]'")
    port = free_port()
    storage, password = without_password(storage_uri)
    here = {f"{BACKEND}/optuna": storage, "0.0.0.0": LOOPBACK, "8080": str(port)}
    with serving(Server(service("dashboard", {"POSTGRES_PASSWORD": password}, here), folder, port)) as server:
        yield server


def without_password(uri: str) -> tuple[str, str]:
    """The URI without its password, and the password."""
    parts = urlsplit(uri)
    address = parts.netloc.rpartition("@")[2]
    stripped = parts._replace(netloc=f"{parts.username}@{address}").geturl() if parts.password else uri
    return stripped, unquote(parts.password or "none")


@dataclass(frozen=True)
class Postgres:
    """A Postgres cluster for the tests. Its password has characters that a URI must quote."""

    port: int
    password: str
    binaries: Path

    def uri(self, database: str) -> str:
        user = f"quantlab:{quote(self.password, safe='')}"
        return f"postgresql+psycopg2://{user}@{LOOPBACK}:{self.port}/{database}"

    def new_database(self) -> str:
        """Creates an empty database; returns its URI with the password."""
        name = f"test_{secrets.token_hex(8)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.uri(name)

    def sql(self, script: str, database: str = "postgres") -> str:
        """Runs a script as the image does at its first start; returns what psql prints."""
        where = [f"--host={LOOPBACK}", f"--port={self.port}", "--username=quantlab", f"--dbname={database}"]
        quiet = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        return subprocess.run(
            [self.binaries / "psql", *where, *quiet],
            input=script,
            env={"PGPASSWORD": self.password},
            check=True,
            capture_output=True,
            text=True,
        ).stdout


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A new Postgres cluster for one pytest worker; skips the test without psycopg2 or PostgreSQL."""
    pytest.importorskip("psycopg2", reason="needs psycopg2: pip install -e '.[server]'")
    newest = max(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]), default=None
    )
    initdb = newest or shutil.which("initdb")
    if initdb is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    binaries, password, port = Path(initdb).resolve().parent, f"@:/?%20#'{secrets.token_hex(8)}", free_port()
    # Not in pytest's folder: another user may not enter that, and the path of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="quantlab-") as name:
        folder, user = Path(name), unprivileged()
        (folder / "password").write_text(password)
        if user:
            shutil.chown(folder, user)
            shutil.chown(folder / "password", user)
        subprocess.run(
            [
                binaries / "initdb",
                "--pgdata=data",
                "--username=quantlab",
                "--pwfile=password",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
            **identity(user),
        )
        options = {
            "port": port,
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": folder,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        command = [
            str(binaries / "postgres"),
            "-D",
            "data",
            *(f"--{key}={value}" for key, value in options.items()),
        ]
        check = service("postgres", {"POSTGRES_PASSWORD": password}, {"5432": str(port)}).healthcheck
        path = f"{binaries}:{os.environ['PATH']}"
        with serving(Server(Service(command, {"PATH": path}, check), folder, port, user), signal.SIGQUIT):
            yield Postgres(port, password, binaries)


def unprivileged() -> str | None:
    """A user that is not root, as Postgres refuses to run as root; None if the tests do not run as root."""
    users = {entry.pw_name for entry in pwd.getpwall()}
    return None if os.geteuid() else "postgres" if "postgres" in users else "nobody"
