"""Ending a process in the middle of its work so that what it holds open is closed."""

import os
import shlex
import signal
import sys
import threading
from types import FrameType, TracebackType

AGAIN_AFTER_S = 0.1


def end_on_sigterm() -> None:
    """From here on SIGTERM and Ctrl-C end the program through its ``finally`` blocks, SIGTERM with status
    143.

    Ctrl-C says in one line how to go on, with no traceback.

    Python drops an exception that is raised inside a weak reference's callback or a ``__del__``, where a
    signal may well find the program: SIGTERM and Ctrl-C are then sent again.
    """
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _send_again
    sys.excepthook = _interrupted


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"interrupted; the same command goes on: {shlex.join(sys.orig_argv)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _send_again(dropped: "sys.UnraisableHookArgs") -> None:
    lost = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(dropped.exc_type)
    if lost is None:
        sys.__unraisablehook__(dropped)
    else:
        threading.Timer(AGAIN_AFTER_S, os.kill, (os.getpid(), lost)).start()
