import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, time, weakref
from quantlab.cli.signals import end_on_sigterm

class Thing:
    pass

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
end_on_sigterm()
thing = Thing()
held = weakref.ref(thing, lambda _: {in_callback})
try:
    {action}
    time.sleep(30)
finally:
    print("closed")
"""


def run(action: str, in_callback: str) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.format(action=action, in_callback=in_callback)
    return subprocess.run(
        [sys.executable, "-c", program, "tracking.uri=http://me:secret@host"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", -signal.SIGINT)])
@pytest.mark.parametrize("in_callback", [False, True])
def test_a_signal_ends_the_program_through_its_finally_blocks(
    name: str, status: int, in_callback: bool
) -> None:
    signalled = f"signal.raise_signal(signal.{name})"
    done = run("del thing" if in_callback else signalled, signalled)
    assert (done.returncode, done.stdout) == (status, "closed\n")
    said = "interrupted" if name == "SIGINT" else "ended by SIGTERM"
    assert done.stderr.startswith(f"{said}; the same command goes on: ")
    assert "http://me@host" in done.stderr and "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_other_dropped_exceptions_are_still_told() -> None:
    done = run("del thing; raise SystemExit(0)", "1 / 0")
    assert done.returncode == 0 and "ZeroDivisionError" in done.stderr
