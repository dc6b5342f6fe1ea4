"""A process that has imported what quantlab's commands need, and forks for each command that is requested.

processes.py starts it. Its standard input is a socket. A request is JSON, ``{"arguments", "cwd",
"environment"}``, with four open files: the three standard streams of the new process, and a pipe to which
the id of the new process and, at its end, its exit status are written. A fork ends as any Python process
does and runs its exit handlers.
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
LATER = (  # what the commands import inside functions
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


@atexit.register  # registered first, so called last
def leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def serve(requests: socket.socket) -> list[str]:
    """Forks for every request. Returns in each fork, with the request's arguments."""
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
        with suppress(BrokenPipeError):  # the test has ended
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
    """Does what ``python -m module ...`` and ``python -c code ...`` do."""
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    sys.path[0] = os.getcwd() if kind == "-m" else ""
    if kind == "-m":
        sys.modules.pop(what, None)  # runpy warns if the module is imported already
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
    else:
        raise ValueError(f"only -m and -c are understood, got {kind!r}")


def import_commands() -> None:
    """Imports the commands. Raises RuntimeError if an import started a thread, which a fork would lack."""
    for name in (*(f"quantlab.{command}" for command in COMMANDS), *LATER):
        import_module(name)
    if len(threads := os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"importing started {len(threads) - 1} threads: a fork would lack them")


def main() -> None:
    global status
    import_commands()
    gc.freeze()
    arguments = serve(socket.socket(fileno=os.dup(0)))
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # background jobs of a shell, and their children, ignore it otherwise
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
