"""A sweep on a Ray cluster that runs already: two nodes on loopback, with the token that Ray asks for."""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from processes import Python
from servers import free_port

pytestmark = pytest.mark.slow
START_S = 180.0
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def node(name: str, folder: Path, *arguments: str) -> Iterator[None]:
    """One node with its own cache, in a process that waits for its end and ends with it."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "QUANTLAB_CACHE": str(folder / name), "OMP_NUM_THREADS": "1"}
    small = ["--num-cpus=1", "--object-store-memory=100000000", *arguments]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *small],
            env={**psutil.Process().environ(), **quiet, **TOKEN},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(60)
        for left in psutil.wait_procs(family, timeout=1)[1]:
            left.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, Path]]:
    """Its address, and a folder in which each node has a cache."""
    if find_spec("ray") is None:  # imported here, it would replace functions of inspect for all tests
        pytest.skip("needs ray: pip install -e '.[ray]'")
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as name,
        ExitStack() as stack,
    ):  # paths of sockets have to be short
        head = (f"--port={port}", "--head", "--include-dashboard=false", f"--temp-dir={name}/t")
        stack.enter_context(node("first", Path(name), *head))
        stack.enter_context(node("second", Path(name), f"--address=127.0.0.1:{port}"))
        yield f"127.0.0.1:{port}", Path(name)


def sweep(model: Path, data: Path, address: str) -> list[str]:
    return [
        "-m",
        "quantlab.run",
        "-m",
        "model=hf",
        f"model.path={model}",
        "task=qnli",
        "task.max_length=32",
        f"task.data_dir={data}",
        "calibration.samples=4",
        "evaluation.limit=8",
        "profile=off",
        "tracking=off",
        "bits.weights=8,4",
        "launcher=ray",
        f'hydra.launcher.ray.init.address="{address}"',
    ]


def test_a_sweep_runs_on_both_nodes_of_a_cluster(
    cluster: tuple[str, Path], python: Python, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    address, caches = cluster
    done = python.run(*sweep(tiny_bert, tiny_glue, address), cwd=tmp_path, environment=TOKEN)
    assert done.returncode == 0 and "2 done, 0 reused, 0 failed" in done.stdout, done.stdout + done.stderr
    assert all((caches / name).is_dir() for name in ("first", "second"))


def test_a_cluster_that_wants_a_token_says_so_in_one_line(
    cluster: tuple[str, Path], python: Python, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    address, _ = cluster
    done = python.run(
        *sweep(tiny_bert, tiny_glue, address), cwd=tmp_path, environment={"RAY_AUTH_MODE": "disabled"}
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "HYDRA_FULL_ERROR" not in line and line.strip()]
    assert len(said) == 1 and "cannot be joined: it wants a token: set RAY_AUTH_MODE=token" in said[0], (
        done.stderr
    )
