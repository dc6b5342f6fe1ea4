"""Ending a process in the middle of its work: by a signal, so that what it holds open is closed, or by a
reader that has gone."""

import multiprocessing
import os
import shlex
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType

from quantlab.cli.secrets import without_password

AGAIN_AFTER_S = 0.1
STDERR = 2  # the file descriptor: sys.stderr may be in the middle of a line when a signal comes


def end_on_sigterm() -> None:
    """From here on SIGTERM and Ctrl-C end the program through its ``finally`` blocks, SIGTERM with status
    143.

    Both say in one line how to go on, with no traceback.

    Python drops an exception that is raised inside a weak reference's callback or a ``__del__``, where a
    signal may well find the program: SIGTERM and Ctrl-C are then sent again.
    """
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _send_again
    sys.excepthook = _interrupted


def printed(text: str) -> int:
    """Prints to standard output. Returns the exit status: 0, or 141 where nobody reads on (``... | head``),
    as a shell has it of a program that SIGPIPE ends."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        return 128 + signal.SIGPIPE
    return 0


def _leave(number: int, _: FrameType | None) -> None:
    if multiprocessing.parent_process() is None:  # one line, however many workers there are
        with suppress(OSError):  # nobody reads on
            os.write(STDERR, f"ended by SIGTERM; {_again()}\n".encode())
    sys.exit(128 + number)


def _again() -> str:
    return f"the same command goes on: {without_password(shlex.join(sys.orig_argv))}"


def _interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"interrupted; {_again()}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _send_again(dropped: "sys.UnraisableHookArgs") -> None:
    lost = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(dropped.exc_type)
    if lost is None:
        sys.__unraisablehook__(dropped)
    else:
        threading.Timer(AGAIN_AFTER_S, os.kill, (os.getpid(), lost)).start()
