"""Clocks and memory of one run, on a CPU or a GPU."""

import gc
import threading
import time
from collections.abc import Callable

import psutil
import torch

from quantlab.machine.allocator import release_freed_memory

MB = 2**20
SAMPLING_INTERVAL_S = 0.001

Run = Callable[[], None]


def resident_mb() -> float:
    """Returns the process's resident memory in MB, after freed memory went back to the system."""
    gc.collect()
    release_freed_memory()
    return psutil.Process().memory_info().rss / MB


def times_of(run: Run, device: str, count: int) -> list[float]:
    """Returns the time of each of ``count`` runs on a device, in ms."""
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


def loaded_memory(device: str, before: float) -> dict[str, float]:
    """Returns the memory that a model holds, by metric name, in MB; ``before`` is what the process held."""
    if device.startswith("cuda"):
        return {"memory_weights_mb": torch.cuda.memory_allocated() / MB}
    return {"memory_weights_mb": resident_mb() - before}


def peak_memory(run: Run, device: str) -> dict[str, float]:
    """Returns the memory that one more run needs, by metric name, in MB."""
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
