"""Runs commands in processes of their own, forked from one that has imported everything (zygote.py): a start
takes a tenth of a second instead of seven.

::

    def test_it(python: Python, tmp_path: Path) -> None:
        done = python.run("-m", "quantlab.run", "method=fp32", cwd=tmp_path)  # .returncode, .stdout, .stderr
        going = python.start("-m", "quantlab.run", "-m", "method.k=2,4", cwd=tmp_path)
        going.says("1 of 2")  # waits for this text in its output
        going.kill()  # or going.kill(signal.SIGINT); going.wait() returns its status

A process has the test's environment. It can patch quantlab before it starts a command::

    python.run("-c", "import quantlab.x as x; x.f = ...; from quantlab.run import main; main()", ...)

Tests of what a start does (entry points, ``OMP_NUM_THREADS``, the order of imports) start Python itself.
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
# A fork keeps only the thread that calls it, so no library may start others in the forking process.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class Going:
    """A started process. Its output goes to files."""

    def __init__(self, told: IO[bytes], output: IO[str], errors: IO[str]) -> None:
        self._told, self._output, self._errors = told, output, errors
        self.pid = int(told.readline())
        self.returncode: int | None = None

    def poll(self, timeout: float = 0) -> int | None:
        """Its exit status (-9 after SIGKILL, as in subprocess); None if it still runs after ``timeout``
        seconds."""
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.readline())
        return self.returncode

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Waits for its exit status. Raises AssertionError with its output if it does not end in time."""
        status = self.poll(timeout)
        assert status is not None, f"still running after {timeout:g} s:\n{self.stdout}{self.stderr}"
        return status

    def says(self, text: str, timeout: float = TIMEOUT_S) -> None:
        """Waits for ``text`` in its output. Raises AssertionError with the output if it ends without it."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout + self.stderr:
            ended = self.poll() is not None and text not in self.stdout + self.stderr
            assert not ended, f"it ended and never said {text!r}:\n{self.stdout}{self.stderr}"
            assert time.monotonic() < deadline, (
                f"did not say {text!r} in {timeout:g} s:\n{self.stdout}{self.stderr}"
            )
            self.poll(POLL_S)

    def kill(self, number: int = signal.SIGKILL, group: bool = False) -> None:
        """Sends a signal to the process; with ``group`` to its children too, as Ctrl-C in a terminal does."""
        if self.poll() is None:
            (os.killpg if group else os.kill)(self.pid, number)

    @property
    def stdout(self) -> str:
        return _text(self._output)

    @property
    def stderr(self) -> str:
        return _text(self._errors)

    def close(self) -> None:
        """Kills the process and its children, if any are left."""
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
    """The process that forks (zygote.py), started at its first use."""

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
    """Starts Python processes for one test and ends them with it."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote, self._started = zygote, list[Going]()

    def start(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> Going:
        """Starts ``python -m module ...`` or ``python -c code ...``; ``environment`` adds to the test's."""
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
        """Starts a process and waits until it ends."""
        going = self.start(*arguments, cwd=cwd, environment=environment)
        status = going.wait(timeout)
        return subprocess.CompletedProcess(list(arguments), status, going.stdout, going.stderr)

    def close(self) -> None:
        for going in self._started:
            going.close()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The forking process of one pytest worker."""
    forker = Zygote()
    yield forker
    forker.close()


@pytest.fixture
def python(zygote: Zygote) -> Iterator[Python]:
    """``python.run("-m", "quantlab.run", ..., cwd=folder)`` waits for the end of a process; ``python.start``
    returns at once. See the module's docstring."""
    pythons = Python(zygote)
    yield pythons
    pythons.close()
