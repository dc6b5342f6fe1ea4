"""Commands as processes of their own, without the seconds of imports that a new Python needs.

::

    def test_it(python: Python, tmp_path: Path) -> None:
        done = python.run("-m", "quantlab.run", "method=fp32", cwd=tmp_path)  # .returncode, .stdout, .stderr
        going = python.start("-m", "quantlab.run", "-m", "method.k=2,4", cwd=tmp_path)
        going.says("1 of 2")  # waits until its output has this text
        going.kill()  # or going.kill(signal.SIGINT); going.wait() is its status

A process has the environment of the test, and can patch quantlab before it starts a command::

    python.run("-c", "import quantlab.x as x; x.f = ...; from quantlab.run import main; main()", ...)

Real starts of Python are for tests of what a start does: entry points, ``OMP_NUM_THREADS``, the order of
imports.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from servers import members

ZYGOTE = Path(__file__).with_name("zygote.py")
TIMEOUT_S, POLL_S = 300.0, 0.01
# One thread, as a fork keeps no other: Arrow's allocator would start one, linear algebra's libraries theirs.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class Going:
    """A process that was started. Its output is kept in files."""

    def __init__(self, told: IO[bytes], output: IO[str], errors: IO[str]) -> None:
        self._told, self._output, self._errors = told, output, errors
        self.pid = int(told.readline())
        self.returncode: int | None = None

    def poll(self, timeout: float = 0) -> int | None:
        """Its status, as subprocess has it (-9 after SIGKILL); None if it runs on, for as many seconds as are
        given."""
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.readline())
        return self.returncode

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Its status. AssertionError with its output if it does not end in time."""
        status = self.poll(timeout)
        assert status is not None, f"still running after {timeout:g} s:\n{self.stdout}{self.stderr}"
        return status

    def says(self, text: str, timeout: float = TIMEOUT_S) -> None:
        """Returns when its output has the text. AssertionError with its output where it ends without it."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout + self.stderr:
            ended = self.poll() is not None and text not in self.stdout + self.stderr
            assert not ended, f"it ended and never said {text!r}:\n{self.stdout}{self.stderr}"
            assert time.monotonic() < deadline, (
                f"did not say {text!r} in {timeout:g} s:\n{self.stdout}{self.stderr}"
            )
            self.poll(POLL_S)

    def kill(self, number: int = signal.SIGKILL, group: bool = False) -> None:
        """Sends a signal: to the process, or to its children as well, as Ctrl-C in a terminal does."""
        if self.poll() is None:
            (os.killpg if group else os.kill)(self.pid, number)

    @property
    def stdout(self) -> str:
        return _text(self._output)

    @property
    def stderr(self) -> str:
        return _text(self._errors)

    def close(self) -> None:
        """Kills what is left of it and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
            while members(self.pid):
                time.sleep(POLL_S)
        for file in (self._told, self._output, self._errors):
            file.close()


def _scratch() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


class Zygote:
    """The process that forks (zygote.py). It is started at its first use."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def start(self, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str]) -> Going:
        requests = self._requests or self._begin()
        read, write = os.pipe()
        request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment)}
        output, errors = _scratch(), _scratch()
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), output.fileno(), errors.fileno(), write]
            socket.send_fds(requests, [json.dumps(request).encode()], files)
        os.close(write)
        return Going(os.fdopen(read, "rb", buffering=0), output, errors)

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(ZYGOTE)],
                stdin=theirs,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        self._requests = ours
        return ours

    def close(self) -> None:
        if self._requests is not None and self._process is not None:
            self._requests.close()
            self._process.wait()


class Python:
    """Starts Pythons for one test, and leaves none of them behind."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote, self._started = zygote, list[Going]()

    def start(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> Going:
        """``python -m module ...`` or ``python -c code ...``, with more in its environment than the test
        has."""
        going = self._zygote.start(arguments, cwd, {**os.environ, **(environment or {})})
        self._started.append(going)
        return going

    def run(
        self,
        *arguments: str,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """The same, until it ends."""
        going = self.start(*arguments, cwd=cwd, environment=environment)
        status = going.wait(timeout)
        return subprocess.CompletedProcess(list(arguments), status, going.stdout, going.stderr)

    def close(self) -> None:
        for going in self._started:
            going.close()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The process that all tests of one worker fork from."""
    forker = Zygote()
    yield forker
    forker.close()


@pytest.fixture
def python(zygote: Zygote) -> Iterator[Python]:
    """``python.run("-m", "quantlab.run", ..., cwd=folder)``, in a tenth of a second instead of seven
    (processes.py).

    ``python.start(...)`` returns at once: ``.says(text)``, ``.kill()``, ``.wait()``, ``.stdout``,
    ``.stderr``.
    """
    pythons = Python(zygote)
    yield pythons
    pythons.close()
