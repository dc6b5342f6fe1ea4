"""A Python that has imported what quantlab's commands need and forks for each of them: a start without its
imports.

Run by processes.py, never by hand. Standard input is a socket. A request is JSON, ``{"arguments", "cwd",
"environment"}``, and four open files: the three standard streams of the new process, and a pipe, on which
come its id and, when it has ended, its status. The forks end as any Python does, with all its handlers.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType

COMMANDS = ("run", "search", "sensitivity", "report", "export", "finetune", "outliers", "sync")
LATER = (  # what the commands import when they come to it
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "optuna.samplers",
    "optuna.storages",
    "pandas",
    "plotly.offline",
    "scipy.stats",
    "statsmodels.stats.proportion",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
)
LARGEST_REQUEST = 2**17


status = 0


@atexit.register  # what is registered first is called last
def leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def serve(requests: socket.socket) -> list[str]:
    """Forks for every request. Returns in each fork, with the arguments that Python would have been started
    with."""
    while True:
        message, files, *_ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
        if not message:
            sys.exit()
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    *streams, told = files
    if pid := os.fork():
        os.write(told, f"{pid}\n".encode())
        for stream in streams:
            os.close(stream)
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(told, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        os._exit(0)
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for file in files:
        os.close(file)
    request = json.loads(message)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    return list(request["arguments"])


def run(arguments: list[str]) -> None:
    """What ``python -m module ...`` and ``python -c code ...`` do."""
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    sys.path[0] = os.getcwd() if kind == "-m" else ""
    if kind == "-m":
        sys.modules.pop(what, None)  # runpy warns where the module that it is to run is imported already
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
    else:
        raise ValueError(f"only -m and -c are understood, got {kind!r}")


def imported() -> None:
    """Imports it all. RuntimeError where an import has started a thread: a fork would lack it."""
    for name in (*(f"quantlab.{command}" for command in COMMANDS), *LATER):
        import_module(name)
    if len(threads := os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"importing started {len(threads) - 1} threads: a fork would lack them")


def main() -> None:
    global status
    imported()
    gc.freeze()
    arguments = serve(socket.socket(fileno=os.dup(0)))
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it, and all they start
    try:
        run(arguments)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        raise
    except KeyboardInterrupt:
        status = -signal.SIGINT
        raise
    except BaseException:
        status = 1
        raise


if __name__ == "__main__":
    main()
