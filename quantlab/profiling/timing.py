"""Times one model in a fresh process: the process loads the model, then answers requests over a pipe.

A process of its own keeps what this one has allocated and cached out of the model's times and memory.
"""

import gc
import os
import platform
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import psutil
import torch
from filelock import FileLock

from quantlab.engines.insert import insert
from quantlab.machine.allocator import keep_freed_memory, release_freed_memory
from quantlab.network.checkpoint import read_model
from quantlab.plan.plan import QuantPlan
from quantlab.runtimes.runtime import FileRuntime
from quantlab.storage.files import cache_dir

MB = 2**20
SAMPLING_INTERVAL_S = 0.001
ANSWER_TIMEOUT_S = 600  # a model may take this long to load

Inputs = Mapping[str, np.ndarray]
Pipe: TypeAlias = "Connection[Any, Any]"
Run = Callable[[], None]


class Subject(ABC):
    """A model to time. It is pickled, sent to a fresh process, and loaded there."""

    device: str

    @abstractmethod
    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        """Loads the model. Returns a function that runs it once on ``inputs``; ``stack`` undoes the setup."""


@dataclass(frozen=True, kw_only=True)
class TorchSubject(Subject):
    """A checkpoint's model in torch, quantized by a plan."""

    folder: Path
    head: str  # one of quantlab.tasks.heads
    plan: QuantPlan
    engine: str
    device: str

    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        model = read_model(self.folder, self.head)[0].requires_grad_(False)
        model.eval().to(self.device)  # type: ignore[no-untyped-call]
        inserted = stack.enter_context(insert(model, self.plan, self.engine))
        stack.enter_context(torch.inference_mode())
        tensors = {name: torch.from_numpy(values).to(self.device) for name, values in inputs.items()}

        def run() -> None:
            before = dict(inserted.calls)
            model(**tensors)
            if idle := [site for site, calls in inserted.calls.items() if calls == before[site]]:
                raise RuntimeError(f"quantizers did not run while the model was timed: {', '.join(idle)}")

        return run


@dataclass(frozen=True, kw_only=True)
class RuntimeSubject(Subject):
    """An exported file in its runtime."""

    path: Path
    runtime: FileRuntime
    device: str = "cpu"

    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        session = self.runtime.open(self.path, threads)
        accepted = {name: values for name, values in inputs.items() if name in session.names}

        def run() -> None:
            session(accepted)

        return run


@dataclass(frozen=True)
class TimeRuns:
    """Asks a timing process for the times of ``count`` runs, in ms."""

    count: int


@dataclass(frozen=True)
class MeasureMemory:
    """Asks a timing process for the memory that one more run needs, in MB."""


Request = TimeRuns | MeasureMemory


class TimingProcess:
    """This side of a process that has loaded one subject.

    Both methods raise what went wrong in the process, and RuntimeError if it has ended or does not answer.
    """

    def __init__(self, pipe: Pipe, memory: dict[str, float]):
        self._pipe = pipe
        self.memory = memory  # in MB, of the loaded model

    def times(self, count: int) -> list[float]:
        """Returns the time of each of ``count`` runs, in ms."""
        return cast(list[float], self._ask(TimeRuns(count)))

    def peak_memory(self) -> dict[str, float]:
        """Returns the memory that one more run needs, by metric name, in MB."""
        return cast(dict[str, float], self._ask(MeasureMemory()))

    def _ask(self, request: Request) -> object:
        with suppress(ConnectionError):  # a process that has ended: _receive raises
            self._pipe.send(request)
        return _receive(self._pipe)


@contextmanager
def exclusive_timing() -> Iterator[None]:
    """Waits until no other process on this host times a model, and keeps others waiting until the exit.

    Two timings at once would share processors, as :func:`pin_threads` always takes the first ones. The lock
    lies in the cache folder, so only processes with the same cache folder wait for each other. It ends with
    its process.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"timing on {platform.node()}.lock"):
        yield


@contextmanager
def timing_process(subject: Subject, inputs: Inputs, threads: int) -> Iterator[Callable[[], TimingProcess]]:
    """Starts a process that loads the subject, and ends it on exit.

    Yields a function that waits until the subject is loaded; so several processes can load side by side.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, subject, dict(inputs), threads), daemon=True)
    process.start()
    there.close()
    try:

        def wait_until_loaded() -> TimingProcess:
            return TimingProcess(here, cast(dict[str, float], _receive(here)))

        yield wait_until_loaded
    finally:
        here.close()  # the process ends when it next receives
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()


def _receive(pipe: Pipe) -> object:
    """Returns the process's answer. Raises it if it is an exception."""
    if not pipe.poll(ANSWER_TIMEOUT_S):
        raise RuntimeError(f"the timing process did not answer for {ANSWER_TIMEOUT_S} s")
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionError):
        raise RuntimeError("the timing process ended without an answer: was there enough memory?") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(pipe: Pipe, subject: Subject, inputs: Inputs, threads: int) -> None:
    """Runs in the timing process: loads the subject, sends its memory, then answers requests."""
    with suppress(ConnectionError), ExitStack() as stack:  # the other side has closed the pipe
        try:
            pin_threads(threads)
            before = resident_mb()
            run = subject.load(inputs, threads, stack)
            pipe.send(_loaded_memory(subject.device, before))
            while (request := _next_request(pipe)) is not None:
                if isinstance(request, TimeRuns):
                    pipe.send(_times(run, subject.device, request.count))
                else:
                    pipe.send(_peak_memory(run, subject.device))
        except Exception as error:  # noqa: BLE001  # raised again on the other side
            pipe.send(error)


def _next_request(pipe: Pipe) -> Request | None:
    """Returns the next request; None once the other side has closed the pipe."""
    try:
        return cast(Request, pipe.recv())
    except EOFError:
        return None


def pin_threads(threads: int) -> None:
    """Sets torch's number of threads, and pins the process to as many processors, the first ones."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def resident_mb() -> float:
    """Returns the process's resident memory in MB, after freed memory went back to the system."""
    gc.collect()
    release_freed_memory()
    return psutil.Process().memory_info().rss / MB


def _times(run: Run, device: str, count: int) -> list[float]:
    clock = cuda_ms if device.startswith("cuda") else wall_ms
    return [clock(run) for _ in range(count)]


def wall_ms(run: Run) -> float:
    """Returns the time of one run by the wall clock, in ms."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def cuda_ms(run: Run) -> float:
    """Returns the time of one run by CUDA events, in ms."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _loaded_memory(device: str, before: float) -> dict[str, float]:
    if device.startswith("cuda"):
        return {"memory_weights_mb": torch.cuda.memory_allocated() / MB}
    return {"memory_weights_mb": resident_mb() - before}


def _peak_memory(run: Run, device: str) -> dict[str, float]:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        allocated, reserved = torch.cuda.max_memory_allocated() / MB, torch.cuda.max_memory_reserved() / MB
        return {"peak_vram_allocated_mb": allocated, "peak_vram_reserved_mb": reserved}
    loaded = resident_mb()
    peak = sampled_peak_mb(run)
    return {"memory_working_mb": peak - loaded, "peak_memory_mb": peak}


def sampled_peak_mb(run: Run) -> float:
    """Returns the largest resident memory in MB, sampled every ms, while ``run`` runs."""
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_INTERVAL_S):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(peak[0], process.memory_info().rss) / MB
