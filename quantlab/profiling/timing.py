"""Times one model in a fresh process: the process loads the model, then answers requests over a pipe.

A process of its own keeps what this one has allocated and cached out of the model's times and memory.
"""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from quantlab.engines.insert import Inserted, insert
from quantlab.machine.allocator import keep_freed_memory
from quantlab.network.checkpoint import read_model
from quantlab.plan.plan import QuantPlan
from quantlab.profiling.clocks import Run, loaded_memory, peak_memory, resident_mb, times_of
from quantlab.runtimes.runtime import FileRuntime
from quantlab.storage.files import cache_dir

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    from transformers import PreTrainedModel

ANSWER_TIMEOUT_S = 600  # a model may take this long to load
# Before a process that times is forked: two networks' modules import what nearly all networks need.
MODELS = ("auto.modeling_auto", "bert.modeling_bert", "llama.modeling_llama")
IMPORTED = (__name__, *(f"transformers.models.{name}" for name in MODELS))

Inputs = Mapping[str, np.ndarray]
Pipe: TypeAlias = "Connection[Any, Any]"


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
        model, inserted = self.model(stack)
        tensors = self.tensors(inputs)
        return checked(lambda: model(**tensors), inserted)

    def model(self, stack: ExitStack) -> tuple[PreTrainedModel, Inserted]:
        """Loads the model and inserts the plan, without gradients, until ``stack`` ends."""
        model = read_model(self.folder, self.head)[0].requires_grad_(False)
        model.eval().to(self.device)  # type: ignore[no-untyped-call]
        inserted = stack.enter_context(insert(model, self.plan, self.engine))
        stack.enter_context(torch.inference_mode())
        return model, inserted

    def tensors(self, inputs: Inputs) -> dict[str, Tensor]:
        """The inputs on the subject's device."""
        return {name: torch.from_numpy(values).to(self.device) for name, values in inputs.items()}


def checked(forward: Callable[[], object], inserted: Inserted) -> Run:
    """Returns a run of ``forward`` that raises RuntimeError if a quantizer of the plan did not run."""

    def run() -> None:
        before = dict(inserted.calls)
        forward()
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
    """This side of a process that has loaded one subject. Both methods raise what went wrong in the process,
    and RuntimeError if it has ended or does not answer."""

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
    context = _fresh_processes()
    here, there = context.Pipe()
    arguments = (there, dict(os.environ), subject, dict(inputs), threads)
    process = context.Process(target=_serve, args=arguments, daemon=True)
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


def _fresh_processes() -> ForkServerContext | SpawnContext:
    """How processes start: forked from a server that has imported quantlab and done nothing else.

    So each has its own memory, where chance puts it, and none waits for imports. Windows cannot fork: there
    each imports what it needs.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


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


def _serve(
    pipe: Pipe, environment: Mapping[str, str], subject: Subject, inputs: Inputs, threads: int
) -> None:
    """Runs in the timing process: loads the subject, sends its memory, then answers requests."""
    with suppress(ConnectionError), ExitStack() as stack:  # the other side has closed the pipe
        try:
            os.environ.update(environment)  # the server's is of its own start
            pin_threads(threads)
            before = resident_mb()
            run = subject.load(inputs, threads, stack)
            pipe.send(loaded_memory(subject.device, before))
            while (request := _next_request(pipe)) is not None:
                if isinstance(request, TimeRuns):
                    pipe.send(times_of(run, subject.device, request.count))
                else:
                    pipe.send(peak_memory(run, subject.device))
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
