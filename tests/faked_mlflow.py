"""An MLflow server in a thread with the part of MLflow's REST interface that quantlab uses.

It can also ask for a login, answer late, or run behind a prefix or a certificate, as real servers do.

::

    with faked_mlflow(tmp_path, login="me:secret", prefix="/mlflow") as server:
        MLflow(uri=server.uri, experiment="tests")
"""

import base64
import json
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

CERTIFICATE = "server.pem"
MISSING = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not here"}


class Handler(BaseHTTPRequestHandler):
    server: "FakedMlflow"

    def log_message(self, *_: object) -> None:
        """Keeps the server silent."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = urlsplit(self.path).path
        body |= dict(parse_qsl(urlsplit(self.path).query))
        self.server.asked.append(path)
        time.sleep(self.server.silent_s)
        login = self.headers.get("Authorization", "")
        if path.endswith("/health"):
            self.answer(self.server.health, {})
        elif self.server.login and login != f"Basic {base64.b64encode(self.server.login.encode()).decode()}":
            self.answer(401, "You are not authenticated.")
        elif path.startswith(f"{self.server.prefix}/api/2.0/mlflow/"):
            answer = self.server.call(path.rsplit("mlflow/", 1)[1], body)
            self.answer(404 if answer is MISSING else 200, answer)
        else:
            self.answer(404, {})

    def answer(self, status: int, content: dict[str, Any] | str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())


class FakedMlflow(ThreadingHTTPServer):
    """A server with one experiment; ``runs`` are its runs by id, ``asked`` the paths of all requests."""

    def __init__(
        self, folder: Path, login: str, prefix: str, health: int, silent_s: float, certificate: Path | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.login, self.prefix, self.health, self.silent_s = (
            folder,
            login,
            prefix,
            health,
            silent_s,
        )
        self.runs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}{prefix}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.address = self.address.replace("http://", "https://")
        self.uri = self.address.replace("://", f"://{login}@") if login else self.address

    def call(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        if what == "experiments/get-by-name":
            return {"experiment": {"experiment_id": "1", "name": "tests", "lifecycle_stage": "active"}}
        if what == "runs/create":
            name = uuid.uuid4().hex  # MLflow remembers where a run's artifacts are by its id alone
            info = {
                "run_id": name,
                "run_uuid": name,
                "run_name": body["run_name"],
                "experiment_id": "1",
                "status": "RUNNING",
                "lifecycle_stage": "active",
                "start_time": 0,
                "artifact_uri": (self.folder / name).as_uri(),
            }
            self.runs[name] = {"info": info, "data": {"tags": body["tags"], "params": [], "metrics": []}}
            return {"run": self.runs[name]}
        if what == "runs/search":
            runs, wanted = self.runs.values(), body["filter"]
            return {
                "runs": [run for run in runs if any(tag["value"] in wanted for tag in run["data"]["tags"])]
            }
        run = self.runs.get(body.get("run_id", ""))
        if run is None:
            return MISSING
        for kind in ("tags", "params", "metrics"):
            run["data"][kind] += body.get(kind, [])
        run["info"] |= {name: body[name] for name in ("status", "end_time") if name in body}
        return {"run_info": run["info"], "run": run}


def certificate(folder: Path) -> Path:
    """Writes a self-signed certificate of 127.0.0.1 and its key into one file; returns its path."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / CERTIFICATE).write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return folder / CERTIFICATE


@contextmanager
def faked_mlflow(
    folder: Path,
    login: str = "",
    prefix: str = "",
    health: int = 200,
    silent_s: float = 0,
    certificate: Path | None = None,
) -> Iterator[FakedMlflow]:
    """Serves until the block ends. ``login`` is ``user:password``; answers are ``silent_s`` seconds late."""
    with FakedMlflow(folder, login, prefix, health, silent_s, certificate) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
