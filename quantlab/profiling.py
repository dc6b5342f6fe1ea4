"""Latency and memory of one model on one machine."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantlab.allocator import release_freed_memory
from quantlab.batching import Tokenized
from quantlab.checks import whole
from quantlab.placement.insert import Inserted
from quantlab.progress import progress

MB = 2**20
SAMPLING_INTERVAL_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Latencies of one batch in ms, examples a second, and peak memory in MB (2^20 bytes)."""

    metrics: dict[str, float]
    tags: dict[str, str]


class Profile(ABC):
    """How a model is timed, if at all."""

    @abstractmethod
    def measure(
        self, model: PreTrainedModel, inserted: Inserted, data: Tokenized, tokenizer: PreTrainedTokenizerBase
    ) -> Measured:
        """Runs the model on real rows and measures it."""


@dataclass(frozen=True, kw_only=True)
class Off(Profile):
    """No measurement."""

    def measure(
        self, model: PreTrainedModel, inserted: Inserted, data: Tokenized, tokenizer: PreTrainedTokenizerBase
    ) -> Measured:
        return Measured(metrics={}, tags={})


@dataclass(frozen=True, kw_only=True)
class Timed(Profile):
    """``warmup`` untimed and ``iterations`` timed runs of ``batch_size`` rows of ``length`` tokens.

    A GPU is timed with CUDA events, and its peak allocated memory taken; a CPU with the wall clock, and the peak
    resident memory of the whole process taken in a run of its own, so that looking does not slow what is timed.
    """

    warmup: int
    iterations: int
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        whole("profile.warmup", self.warmup, 0)
        for field in ("iterations", "batch_size", "length"):
            whole(f"profile.{field}", getattr(self, field), 1)

    @torch.inference_mode()
    def measure(
        self, model: PreTrainedModel, inserted: Inserted, data: Tokenized, tokenizer: PreTrainedTokenizerBase
    ) -> Measured:
        """Raises RuntimeError where a quantizer of the plan did not run in every timed iteration."""
        inputs = self._inputs(data, tokenizer, model.device)

        def run() -> None:
            model(**inputs)

        for _ in range(self.warmup):
            run()
        before = dict(inserted.calls)
        clock = _cuda_ms if model.device.type == "cuda" else _wall_ms
        times = np.array([clock(run) for _ in progress(range(self.iterations), "profiling")])
        _require_ran(before, inserted.calls, self.iterations)
        memory = _cuda_memory(run) if model.device.type == "cuda" else _process_memory(run)
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
        return Measured(
            metrics={
                "latency_p50_ms": p50,
                "latency_p95_ms": p95,
                "latency_p99_ms": p99,
                "examples_per_s": float(1000 * self.batch_size / times.mean()),
                **memory.metrics,
            },
            tags=memory.tags,
        )

    def _inputs(self, data: Tokenized, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> dict[str, Tensor]:
        """Real rows, cut or padded to ``length``; fewer than a batch are repeated."""
        rows = [data.rows[index % len(data)] for index in range(self.batch_size)]
        cut = [{name: values[: self.length] for name, values in row.items()} for row in rows]
        padded = tokenizer.pad(cut, padding="max_length", max_length=self.length, return_tensors="pt")
        return {name: tensor.to(device) for name, tensor in padded.items()}


def _wall_ms(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _cuda_ms(run: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _require_ran(before: Mapping[str, int], after: Mapping[str, int], iterations: int) -> None:
    idle = [site for site in after if after[site] - before[site] < iterations]
    if idle:
        raise RuntimeError(f"quantizers did not run while the model was timed: {', '.join(idle)}")


def _cuda_memory(run: Callable[[], None]) -> Measured:
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    resident = psutil.Process().memory_info().rss / MB
    return Measured(
        metrics={"peak_vram_mb": torch.cuda.max_memory_allocated() / MB, "peak_memory_mb": resident},
        tags={"peak_memory_kind": "resident memory of the process; peak_vram_mb: allocated by torch"},
    )


def _process_memory(run: Callable[[], None]) -> Measured:
    process, peak = psutil.Process(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_INTERVAL_S):
            peak[0] = max(peak[0], process.memory_info().rss)

    release_freed_memory()  # what earlier work has freed is not this model's
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    peak[0] = max(peak[0], process.memory_info().rss)
    kind = f"resident memory of the whole process, sampled every {1000 * SAMPLING_INTERVAL_S:g} ms"
    return Measured(metrics={"peak_memory_mb": peak[0] / MB}, tags={"peak_memory_kind": kind})
