"""What is timed runs in a process of its own, as its plan says, and its clocks and memory are read right."""

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tiny import ALL, padded, planned, tiny_model
from transformers import PreTrainedModel

from quantlab.engines.insert import insert
from quantlab.methods.uniform import Uniform
from quantlab.network.checkpoint import read_model
from quantlab.network.taps import ModuleOutput
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.profiling import clocks, timing
from quantlab.profiling.clocks import MB, Run, cuda_ms, wall_ms
from quantlab.profiling.timing import (
    Inputs,
    RuntimeSubject,
    Subject,
    TimingProcess,
    TorchSubject,
    exclusive_timing,
    timing_process,
)
from quantlab.quant.grid import FloatGrid
from quantlab.runtimes.runtime import FileRuntime
from quantlab.tasks.heads import CLASSES

INPUTS = {name: values.numpy() for name, values in padded().inputs.items()}
HELD_MB, USED_MB = 64, 128


@dataclass(frozen=True)
class Importing(Subject):
    """It raises the number of modules that other networks than the preloaded ones import besides."""

    device: str = "cpu"

    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        known = set(sys.modules)
        for family in ("gpt2", "vit", "mpnet"):
            importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        raise EOFError(str(len(set(sys.modules) - known)))


@dataclass(frozen=True)
class Odd(Subject):
    """It holds and uses memory, or fails as it loads or runs."""

    fails: str = ""
    device: str = "cpu"

    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        if self.fails == "raises":
            raise EOFError(f"truncated; {threads} = {torch.get_num_threads()} threads")
        if self.fails == "dies":
            os._exit(3)
        held = np.ones(HELD_MB * MB, np.uint8)

        def run() -> None:
            if self.fails == "does not run":
                raise ArithmeticError
            for _ in range(5):
                np.ones(USED_MB * MB, np.uint8)[::4096] += held[0]

        return run


def int8(folder: Path, device: str = "cpu") -> TorchSubject:
    plan = planned(read_model(folder)[0].eval(), ALL, Uniform())
    return TorchSubject(head=CLASSES, folder=folder, plan=plan, engine="integer", device=device)


def test_an_int8_model_in_a_process_of_its_own(tiny_bert: Path) -> None:
    mine, children = os.sched_getaffinity(0), set(multiprocessing.active_children())
    with timing_process(int8(tiny_bert), INPUTS, 1) as loaded:
        worker = loaded()
        times = [worker.times(count) for count in (3, 1)]
        (child,) = set(multiprocessing.active_children()) - children
        assert psutil.Process(child.pid).cpu_affinity() == sorted(mine)[:1]
        peak = worker.peak_memory()
    assert [len(turn) for turn in times] == [3, 1] and min(map(min, times)) > 0
    assert worker.memory.keys() == {"memory_weights_mb"}
    assert peak.keys() == {"memory_working_mb", "peak_memory_mb"}
    assert peak["peak_memory_mb"] > worker.memory["memory_weights_mb"] > 0
    assert child.exitcode == 0 and os.sched_getaffinity(0) == mine


@pytest.mark.slow
def test_memory_that_a_model_holds_and_that_its_runs_need() -> None:
    with timing_process(Odd(), INPUTS, 1) as loaded:
        worker = loaded()
        assert worker.memory["memory_weights_mb"] == pytest.approx(HELD_MB, abs=8)
        worker.times(1)
        peak = worker.peak_memory()  # what the run before has freed is no part of it
        assert USED_MB - 8 < peak["memory_working_mb"] < 2 * USED_MB + 8
        assert peak["peak_memory_mb"] > HELD_MB + peak["memory_working_mb"]


def test_what_goes_wrong_in_a_process_is_raised_here() -> None:
    children = set(multiprocessing.active_children())
    with timing_process(Odd("raises"), INPUTS, 1) as raising, timing_process(Odd("dies"), INPUTS, 1) as dying:
        with pytest.raises(EOFError, match="truncated; 1 = 1 threads"):
            raising()
        with pytest.raises(RuntimeError, match="ended without an answer"):
            dying()
    assert set(multiprocessing.active_children()) == children


def test_one_timing_at_a_time() -> None:
    """Two of them would be pinned to the same processors, the first ones."""
    log: list[str] = []
    asked = threading.Event()

    def other() -> None:
        asked.set()
        with exclusive_timing():
            log.append("the other's turn")

    thread = threading.Thread(target=other)
    with exclusive_timing():
        thread.start()
        asked.wait()
        thread.join(0.1)
        log.append("done")
    thread.join(30)
    assert log == ["done", "the other's turn"]


@pytest.fixture
def ends() -> tuple[Any, Any]:
    """Both ends of a connection."""
    return multiprocessing.Pipe()


@pytest.mark.parametrize("unread", [0, 1])
def test_a_process_that_ended_between_two_turns(ends: tuple[Any, Any], unread: int) -> None:
    here, there = ends
    worker = TimingProcess(here, {})
    for _ in range(unread):
        here.send(7)
    there.close()
    with pytest.raises(RuntimeError, match="ended without an answer"):
        worker.times(1)


def test_a_process_that_says_nothing(ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ANSWER_TIMEOUT_S", 0.01)
    with pytest.raises(RuntimeError, match="did not answer for 0.01 s"):
        TimingProcess(ends[0], {}).times(1)


@pytest.mark.parametrize("fails", ["", "raises", "does not run"])
def test_a_process_that_nobody_waits_for_ends(
    fails: str, ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is answering or failing, and whether what it has said was read."""
    monkeypatch.setattr(timing, "pin_threads", lambda _: None)
    here, there = ends
    here.send(timing.TimeRuns(1))
    here.close()
    timing._serve(there, {}, Odd(fails), {}, 1)


def test_a_failing_run_is_the_answer(ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "pin_threads", lambda _: None)
    here, there = ends
    here.send(timing.TimeRuns(1))
    timing._serve(there, {}, Odd("does not run"), {}, 1)
    assert here.recv().keys() == {"memory_weights_mb"}
    assert isinstance(here.recv(), ArithmeticError)


def test_pinned_to_as_many_processors_as_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[object] = []
    monkeypatch.setattr(timing, "keep_freed_memory", lambda: log.append("keep"))
    monkeypatch.setattr(torch, "set_num_threads", log.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 3, 12, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: log.append((pid, cpus)))
    timing.pin_threads(2)
    assert log == ["keep", 2, (0, [3, 5])]
    monkeypatch.delattr(os, "sched_setaffinity")  # macOS
    timing.pin_threads(1)
    assert log[3:] == ["keep", 1]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """What every checkpoint holds."""
    made = tiny_model()
    monkeypatch.setattr(timing, "read_model", lambda *_: (made, set()))
    return made


@pytest.mark.parametrize("engine", ["integer", "simulated"])
def test_the_model_runs_as_the_plan_says(
    model: PreTrainedModel, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engines' answers differ so little that they may be the same bits: which one it is, is seen as it is
    asked."""
    plan, ran, eager, asked = planned(model, ALL, Uniform()), [], [], []
    monkeypatch.setattr(timing, "insert", lambda *args: asked.append(args) or insert(*args))
    with torch.inference_mode():
        eager.append(model(**padded().inputs).logits)
        with insert(model, plan, engine):
            expected = model(**padded().inputs).logits
    handle = model.register_forward_hook(lambda *args: ran.append(args[-1].logits))
    with ExitStack() as stack:
        run = TorchSubject(head=CLASSES, folder=Path(), plan=plan, engine=engine, device="cpu").load(
            INPUTS, 1, stack
        )
        run()
        run()
        assert (
            all(logits.is_inference() and torch.equal(logits, expected) for logits in ran) and len(ran) == 2
        )
    assert asked == [(model, plan, engine)]
    handle.remove()
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(model(**padded().inputs).logits, eager[0]) and not torch.equal(eager[0], expected)


def test_quantizers_that_did_not_run(model: PreTrainedModel) -> None:
    """A list of layers is a module, but is never called."""
    plan = QuantPlan(
        activations=tuple(
            ActivationQuant(site=site, tap=ModuleOutput(module), grid=FloatGrid(format="bf16"))
            for site, module in (
                ("never", "bert.encoder.layer"),
                ("0.ffn.out", "bert.encoder.layer.0.output.dense"),
            )
        )
    )
    with (
        ExitStack() as stack,
        pytest.raises(RuntimeError, match="did not run while the model was timed: never$"),
    ):
        TorchSubject(head=CLASSES, folder=Path(), plan=plan, engine="simulated", device="cpu").load(
            INPUTS, 1, stack
        )()


def test_a_quantizer_that_ran_only_sometimes(model: PreTrainedModel) -> None:
    module = "bert.encoder.layer.0.output.dense"
    once = ActivationQuant(site="once", tap=ModuleOutput(module), grid=FloatGrid(format="bf16"))
    subject = TorchSubject(
        head=CLASSES, folder=Path(), plan=QuantPlan(activations=(once,)), engine="simulated", device="cpu"
    )
    with ExitStack() as stack:
        run = subject.load(INPUTS, 1, stack)
        run()
        model.get_submodule(module)._forward_hooks.clear()
        with pytest.raises(RuntimeError, match="did not run while the model was timed: once$"):
            run()


def test_a_runtime_gets_the_inputs_that_its_file_has() -> None:
    opened: list[tuple[Path, int]] = []
    given: list[Mapping[str, np.ndarray]] = []

    class Session:
        names: Sequence[str] = ("attention_mask", "input_ids")

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> None:
            given.append(inputs)

    class Runtime(FileRuntime):
        def check(self) -> None:
            raise NotImplementedError

        def open(self, path: Path, threads: int) -> Session:  # type: ignore[override]
            opened.append((path, threads))
            return Session()

        def python_line(self, path: Path) -> str:
            raise NotImplementedError

    subject = RuntimeSubject(path=Path("model.onnx"), runtime=Runtime())
    with ExitStack() as stack:
        run = subject.load({**INPUTS, "token_type_ids": INPUTS["input_ids"]}, 2, stack)
        assert (opened, given) == ([(Path("model.onnx"), 2)], [])
        run()
        run()
    assert subject.device == "cpu" and len(opened) == 1
    assert [{key: id(value) for key, value in one.items()} for one in given] == [
        {key: id(value) for key, value in INPUTS.items()}
    ] * 2


def test_wall_clock_counts_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.025])
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(now))
    assert wall_ms(lambda: None) == pytest.approx(25)


@pytest.mark.parametrize("device, clock", [("cpu", "wall_ms"), ("cuda", "cuda_ms"), ("cuda:1", "cuda_ms")])
def test_every_run_is_timed_by_its_devices_clock(
    device: str, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ms = iter([3.0, 1.0, 2.0])
    monkeypatch.delattr(clocks, "cuda_ms" if clock == "wall_ms" else "wall_ms")
    monkeypatch.setattr(clocks, clock, lambda run: run() or next(ms))
    monkeypatch.setattr(clocks, "wall_ms" if clock == "cuda_ms" else "cuda_ms", None, raising=False)
    ran: list[int] = []
    assert clocks.times_of(lambda: ran.append(1), device, 3) == [3, 1, 2]
    assert len(ran) == 3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda's events and counters replaced; what is called in which order."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.recorded = 0

        def record(self) -> None:
            log.append("record")
            self.recorded = len(log)

        def elapsed_time(self, end: "Event") -> float:
            assert end.recorded > self.recorded
            log.append("elapsed")
            return 4.0

    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: log.append(name))
    for name, mb in (("memory_allocated", 7), ("max_memory_allocated", 123), ("max_memory_reserved", 200)):
        monkeypatch.setattr(torch.cuda, name, lambda mb=mb, name=name: log.append(name) or mb * MB)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return log


def test_a_gpus_own_events(cuda: list[str]) -> None:
    assert cuda_ms(lambda: cuda.append("run")) == 4
    assert cuda == ["record", "run", "record", "synchronize", "elapsed"]


def test_a_gpus_own_memory(cuda: list[str]) -> None:
    assert clocks.loaded_memory("cuda:0", before=1e6) == {"memory_weights_mb": 7}
    peak = clocks.peak_memory(lambda: cuda.append("run"), "cuda:0")
    assert peak == {"peak_vram_allocated_mb": 123, "peak_vram_reserved_mb": 200}
    assert cuda[1:4] == ["reset_peak_memory_stats", "run", "synchronize"]


def test_resident_memory_is_without_what_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace(rss=500 * MB)
    monkeypatch.setattr(clocks.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: process))
    monkeypatch.setattr(clocks, "release_freed_memory", lambda: setattr(process, "rss", 300 * MB))
    assert clocks.resident_mb() == 300


def fake_process(monkeypatch: pytest.MonkeyPatch, resident: Callable[[], int]) -> None:
    info = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=resident() * MB))
    monkeypatch.setattr(clocks.psutil, "Process", lambda: info)


def test_peak_memory_sees_what_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resident memory is high only while the model runs."""
    sampled, running = clocks.threading.Event(), [False]

    def resident() -> int:
        if running[0]:
            sampled.set()
        return 500 if running[0] else 300

    def run() -> None:
        sampled.clear()
        running[0] = True
        assert sampled.wait(30)
        running[0] = False

    fake_process(monkeypatch, resident)
    assert clocks.sampled_peak_mb(run) == 500
    assert clocks.peak_memory(run, "cpu") == {"memory_working_mb": 200, "peak_memory_mb": 500}


def test_peak_memory_of_a_run_that_was_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "SAMPLING_INTERVAL_S", 60)
    fake_process(monkeypatch, lambda: 300)
    assert clocks.sampled_peak_mb(lambda: None) == 300


def test_the_watcher_ends_with_a_run_that_fails() -> None:
    def run() -> None:
        raise ArithmeticError

    before = clocks.threading.active_count()
    with pytest.raises(ArithmeticError):
        clocks.sampled_peak_mb(run)
    assert clocks.threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tiny_bert: Path) -> None:
    with timing_process(int8(tiny_bert, "cuda"), INPUTS, 1) as loaded:
        worker = loaded()
        measured = [*worker.times(3), *worker.memory.values(), *worker.peak_memory().values()]
    assert len(measured) == 3 + 1 + 2 and min(measured) > 0


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_process_waits_for_no_imports() -> None:
    """1,400 modules take 4 s, for each of a trial's six processes."""
    with (
        pytest.raises(EOFError, match=r"^\d$|^[1-4]\d$"),
        timing_process(Importing(), INPUTS, 1) as wait_until_loaded,
    ):
        wait_until_loaded()
