"""Profiles: what is run, what is reported, and that a quantizer cannot have been left out."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tokenizer
from tiny import ALL, padded, sites_of, tiny_model, tokenized

from quantlab import profiling
from quantlab.calibration import MinMax, observe
from quantlab.methods.bits import Bits
from quantlab.methods.uniform import Uniform
from quantlab.placement.insert import Inserted, insert
from quantlab.profiling import MB, Off, Timed

SMALL = Timed(warmup=2, iterations=3, batch_size=4, length=12)
LATENCIES = {"latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "examples_per_s"}


def test_fields_and_inputs() -> None:
    model, shapes = tiny_model(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append((kwargs["input_ids"].shape, kwargs["attention_mask"].sum(1).tolist())),
        with_kwargs=True,
    )
    measured = SMALL.measure(model, Inserted(), tokenized((9, 20, 4)), tokenizer())
    assert measured.metrics.keys() == LATENCIES | {"peak_memory_mb"}
    assert all(value > 0 for value in measured.metrics.values())
    assert "whole process" in measured.tags["peak_memory_kind"]
    # warm-up, timed runs, and one whose memory is watched; rows cut or padded to length, the first one again at the end
    assert shapes == [(torch.Size([4, 12]), [9, 12, 4, 9])] * (2 + 3 + 1)


def test_percentiles_of_the_timed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1, 102))

    def clock(run: Callable[[], None]) -> float:
        run()
        return float(next(times))

    monkeypatch.setattr(profiling, "_wall_ms", clock)
    profile = Timed(warmup=0, iterations=101, batch_size=8, length=4)
    metrics = profile.measure(tiny_model(layers=1), Inserted(), tokenized((4,)), tokenizer()).metrics
    assert (metrics["latency_p50_ms"], metrics["latency_p95_ms"], metrics["latency_p99_ms"]) == (51, 96, 100)
    assert metrics["examples_per_s"] == pytest.approx(8 * 1000 / 51)


def test_wall_clock_counts_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.025])
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(now))
    assert profiling._wall_ms(lambda: None) == pytest.approx(25)


def test_peak_memory_sees_what_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resident memory is high only while the model runs."""
    sampled, running = profiling.threading.Event(), [False]

    class Process:
        def memory_info(self) -> SimpleNamespace:
            if running[0]:
                sampled.set()
            return SimpleNamespace(rss=(500 if running[0] else 300) * MB)

    def run() -> None:
        running[0] = True
        assert sampled.wait(30)
        running[0] = False

    monkeypatch.setattr(profiling.psutil, "Process", Process)
    assert profiling._process_memory(run).metrics == {"peak_memory_mb": 500}


def test_the_watcher_ends_with_a_run_that_fails() -> None:
    def run() -> None:
        raise ArithmeticError

    before = profiling.threading.active_count()
    with pytest.raises(ArithmeticError):
        profiling._process_memory(run)
    assert profiling.threading.active_count() == before


def test_quantizers_run_while_the_model_is_timed() -> None:
    model, sites = tiny_model(), sites_of(tiny_model(), ALL)
    plan = Uniform().plan(sites, observe(model, sites, [padded()]), (), Bits(), MinMax())
    with insert(model, plan) as inserted:
        SMALL.measure(model, inserted, tokenized(), tokenizer())
    assert set(inserted.calls.values()) == {2 + 3 + 1}


@pytest.mark.parametrize("calls", [{"0.ffn.sum": 0}, {"0.ffn.sum": 50, "1.ffn.sum": 7}])
def test_quantizers_that_did_not_run(calls: dict[str, int]) -> None:
    with pytest.raises(RuntimeError, match=f"did not run while the model was timed: {', '.join(calls)}"):
        SMALL.measure(tiny_model(), Inserted(calls=calls), tokenized(), tokenizer())


def test_a_quantizer_that_ran_only_sometimes() -> None:
    model, inserted = tiny_model(), Inserted(calls={"always": 0, "once": 0})

    def count(*_: object) -> None:
        inserted.calls["always"] += 1
        inserted.calls["once"] = min(inserted.calls["always"], SMALL.warmup + 1)

    model.register_forward_hook(count)
    with pytest.raises(RuntimeError, match=r"did not run while the model was timed: once$"):
        SMALL.measure(model, inserted, tokenized(), tokenizer())


def test_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps on a GPU, with torch.cuda's clock and memory counters replaced."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, end: "Event") -> float:
            assert end is not self
            log.append("elapsed")
            return 4.0

    class OnDevice:
        def to(self, device: torch.device) -> str:
            log.append(f"to {device}")
            return "tensor"

    class Model:
        device = torch.device("cuda")

        def __call__(self, **inputs: Any) -> None:
            assert inputs == {"input_ids": "tensor"}
            log.append("run")

    def reset() -> None:
        log.append("reset")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123 * MB)
    pad = SimpleNamespace(pad=lambda *_, **__: {"input_ids": OnDevice()})
    measured = Timed(warmup=1, iterations=2, batch_size=8, length=4).measure(
        Model(),  # type: ignore[arg-type]
        Inserted(),
        tokenized(),
        pad,  # type: ignore[arg-type]
    )
    timed = ["record", "run", "record", "synchronize", "elapsed"]
    assert log == ["to cuda", "run", *timed, *timed, "reset", "run", "synchronize"]
    assert measured.metrics.keys() == LATENCIES | {"peak_memory_mb", "peak_vram_mb"}
    assert (measured.metrics["peak_vram_mb"], measured.metrics["latency_p50_ms"]) == (123, 4)
    assert measured.metrics["examples_per_s"] == 8 * 1000 / 4
    assert "allocated by torch" in measured.tags["peak_memory_kind"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    measured = SMALL.measure(tiny_model().to("cuda"), Inserted(), tokenized(), tokenizer())
    assert measured.metrics["peak_vram_mb"] > 0
    assert np.isfinite(list(measured.metrics.values())).all()


def test_off_measures_nothing() -> None:
    measured = Off().measure(tiny_model(), Inserted(calls={"never run": 0}), tokenized(), tokenizer())
    assert (measured.metrics, measured.tags) == ({}, {})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"warmup": -1}, "profile.warmup must be a whole number of at least 0, got -1"),
        ({"iterations": 0}, "profile.iterations must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "profile.batch_size must be a whole number of at least 1, got 2.5"),
        ({"length": "128"}, "profile.length must be a whole number of at least 1, got '128'"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timed(**{"warmup": 1, "iterations": 1, "batch_size": 1, "length": 1} | fields)
