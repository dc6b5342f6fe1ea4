"""A process of its own for what is timed: it loads one subject, and runs it when it is told to."""

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
START_TIMEOUT_S = 600

Inputs = Mapping[str, np.ndarray]
Link: TypeAlias = "Connection[Any, Any]"
Run = Callable[[], None]


class Subject(ABC):
    """What is timed. It travels to a fresh process, and is loaded there."""

    device: str

    @abstractmethod
    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        """One forward pass over ``inputs``; ``stack`` undoes what had to be set up."""


@dataclass(frozen=True, kw_only=True)
class TorchSubject(Subject):
    """A checkpoint's model in torch, as a plan says."""

    folder: Path
    plan: QuantPlan
    engine: str
    device: str

    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        model = read_model(self.folder)[0].requires_grad_(False)
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
        given = {name: values for name, values in inputs.items() if name in session.names}

        def run() -> None:
            session(given)

        return run


class TimingProcess:
    """The process that holds one subject. It is asked for times by a number of runs, for memory by 0."""

    def __init__(self, connection: Link, memory: dict[str, float]):
        self._connection, self.memory = connection, memory

    def times(self, count: int) -> list[float]:
        """How long each of ``count`` runs took, in ms. Raises what went wrong there."""
        return cast(list[float], self._ask(count))

    def peak_memory(self) -> dict[str, float]:
        """What one more run needs."""
        return cast(dict[str, float], self._ask(0))

    def _ask(self, count: int) -> object:
        with suppress(ConnectionError):  # that it has ended is said where its answer is awaited
            self._connection.send(count)
        return _received(self._connection)


@contextmanager
def exclusive_timing() -> Iterator[None]:
    """Waits until no other process times on this host, and keeps others waiting; the lock ends with its
    process.

    Processes that share a cache folder know of each other: :func:`pin_threads` gives each of them the same
    processors.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"timing on {platform.node()}.lock"):
        yield


@contextmanager
def timing_process(subject: Subject, inputs: Inputs, threads: int) -> Iterator[Callable[[], TimingProcess]]:
    """Starts a worker; the call waits until it has loaded, so that several load side by side."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, subject, dict(inputs), threads), daemon=True)
    process.start()
    there.close()
    try:

        def loaded() -> TimingProcess:
            return TimingProcess(here, cast(dict[str, float], _received(here)))

        yield loaded
    finally:
        here.close()  # its recv ends
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()


def _received(connection: Link) -> object:
    if not connection.poll(START_TIMEOUT_S):
        raise RuntimeError(f"the process that is timed said nothing for {START_TIMEOUT_S} s")
    try:
        answer = connection.recv()
    except (EOFError, ConnectionError):
        raise RuntimeError(
            "the process that is timed ended without a word: was there enough memory?"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(connection: Link, subject: Subject, inputs: Inputs, threads: int) -> None:
    with suppress(ConnectionError), ExitStack() as stack:  # nobody waits for the answer any more
        try:
            pin_threads(threads)
            before = resident_mb()
            run = subject.load(inputs, threads, stack)
            connection.send(_loaded_memory(subject.device, before))
            while (count := _asked(connection)) is not None:
                connection.send(
                    _times(run, subject.device, count) if count else _peak_memory(run, subject.device)
                )
        except Exception as error:  # noqa: BLE001  # raised again where somebody waits for the answer
            connection.send(error)


def _asked(connection: Link) -> int | None:
    try:
        return cast(int, connection.recv())
    except EOFError:  # nobody asks any more
        return None


def pin_threads(threads: int) -> None:
    """So many threads, on so many processors."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def resident_mb() -> float:
    """The process's resident memory without what it has freed."""
    gc.collect()
    release_freed_memory()
    return psutil.Process().memory_info().rss / MB


def _times(run: Run, device: str, count: int) -> list[float]:
    clock = cuda_ms if device.startswith("cuda") else wall_ms
    return [clock(run) for _ in range(count)]


def wall_ms(run: Run) -> float:
    """One run by the wall clock."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def cuda_ms(run: Run) -> float:
    """One run by a GPU's own events."""
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
    """The most resident memory that the process was seen to have while something ran."""
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
