"""Measures latency and memory of a model, and its speed-up over FP32.

Each model runs in a fresh process. To compare with FP32, both models run in turns (A B A B), so that other
work on the machine slows both alike. A process is faster or slower for its whole life, depending on where its
memory lies. So several pairs of processes are timed one after another, and the interval of the speed-up is
over the pairs.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import scipy
import torch

from quantlab.config.checks import at_least, whole
from quantlab.profiling.decoding import DecodingSubject
from quantlab.profiling.timing import (
    Inputs,
    Subject,
    TimingProcess,
    TorchSubject,
    exclusive_timing,
    timing_process,
)
from quantlab.tasks.batching import Encoded
from quantlab.tasks.heads import TOKENS

Turns = list[np.ndarray]  # one process's times in ms, an array for each turn

TURN_S = 0.5  # a turn runs a model for about so long
FASTER = 0.05  # the warm-up ends with the first turn whose median is no faster than the last by this share
MOST_WARM_UP_TURNS = 20
PAIRS = 3  # pairs of processes; each takes an equal share of the runs and seconds


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Metrics and tags by name: ms for one batch, examples/s, speed-up, memory in MB (2^20 bytes)."""

    metrics: dict[str, float]
    tags: dict[str, str]


class Profile(ABC):
    """How a model is timed."""

    @abstractmethod
    def measure(
        self, subject: Subject, reference: Subject | None, data: Encoded, processor: Any
    ) -> Measurements:
        """Times the subject on one batch of ``data``, in turns with ``reference`` if there is one."""

    @abstractmethod
    def check_length(self, most: int) -> None:
        """Raises ValueError if the texts that are timed have more than ``most`` tokens."""


@dataclass(frozen=True, kw_only=True)
class NoProfile(Profile):
    """Measures nothing."""

    def check_length(self, most: int) -> None:
        """No text is timed."""

    def measure(
        self, subject: Subject, reference: Subject | None, data: Encoded, processor: Any
    ) -> Measurements:
        return Measurements(metrics={}, tags={})


@dataclass(frozen=True, kw_only=True)
class TimedProfile(Profile):
    """Times at least ``iterations`` runs that take at least ``seconds``, in equal shares in each of
    :data:`PAIRS` processes.

    Each process warms up: it runs at least ``warmup`` times and until it gets no faster. A run is one batch
    of ``batch_size`` rows of ``length`` tokens on ``threads`` threads (None: as many as torch uses).
    Of decoders the same number of runs and seconds goes to one token more with these tokens in a cache.
    CUDA events time a GPU, the wall clock times a CPU.
    """

    warmup: int
    iterations: int
    seconds: float
    batch_size: int
    length: int
    threads: int | None = None

    def __post_init__(self) -> None:
        whole("profile.warmup", self.warmup, 0)
        at_least("profile.seconds", self.seconds, 0)
        for field in ("iterations", "batch_size", "length"):
            whole(f"profile.{field}", getattr(self, field), 1)
        if self.threads is not None:
            whole("profile.threads", self.threads, 1, os.cpu_count())

    def check_length(self, most: int) -> None:
        if self.length > most:
            raise ValueError(f"profile.length={self.length}, but the model takes at most {most} tokens here")

    def measure(
        self, subject: Subject, reference: Subject | None, data: Encoded, processor: Any
    ) -> Measurements:
        """Waits until no other timing runs on this host, so that no two share a processor.

        Raises what the timing processes raise, and RuntimeError if a quantizer of the plan skips a run.
        """
        inputs, threads = self.inputs(data, processor), self.threads or torch.get_num_threads()
        subjects = [subject] if reference is None else [subject, reference]
        with exclusive_timing():
            load = psutil.getloadavg()[0]
            turns, memory = self.in_turns(subjects, inputs, threads)
            decoding = self.decoding(subjects, inputs, threads)
        times = _all_times(turns[0])
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
        return Measurements(
            metrics={
                "latency_p50_ms": p50,
                "latency_p95_ms": p95,
                "latency_p99_ms": p99,
                "examples_per_s": float(1000 * self.batch_size / times.mean()),
                **({} if reference is None else speedup(turns[1], turns[0])),
                **memory,
                **decoding,
            },
            tags={
                "profile_threads": str(threads),
                "load_average_1m": f"{load:.2f}",
                "timed_runs": str(len(times)),
            },
        )

    def inputs(self, data: Encoded, processor: Any) -> Inputs:
        """Returns one batch of the first rows, cut or padded to ``length`` tokens; images
        stay as they are. Too few rows are repeated."""
        rows = data.take(np.arange(self.batch_size) % len(data)).shortened(self.length)
        batch = rows.batch(np.arange(self.batch_size), processor, full_length=True)
        return {name: values.numpy() for name, values in batch.inputs.items()}

    def decoding(self, subjects: Sequence[Subject], inputs: Inputs, threads: int) -> dict[str, float]:
        """Returns the time of one token more after the inputs' tokens, which a cache holds, in ms, and its
        speed-up; empty unless all subjects are decoders in torch."""
        steps = [DecodingSubject.of(subject) for subject in subjects if isinstance(subject, TorchSubject)]
        if len(steps) < len(subjects) or any(step.head != TOKENS for step in steps):
            return {}
        turns, _ = self.in_turns(steps, inputs, threads)
        faster = {} if len(steps) == 1 else speedup(turns[1], turns[0])
        return {
            "decode_p50_ms": float(np.median(_all_times(turns[0]))),
            **{f"decode_{name}": value for name, value in faster.items()},
        }

    def in_turns(
        self, subjects: Sequence[Subject], inputs: Inputs, threads: int
    ) -> tuple[list[list[Turns]], dict[str, float]]:
        """Returns the turns of :data:`PAIRS` processes of each subject, and the first subject's memory.

        At any time one process of each subject lives. The memory is that of the first process.
        """
        taken: list[list[Turns]] = []
        memory: dict[str, float] = {}
        for _ in range(PAIRS):
            with self._pair(subjects, inputs, threads) as processes:
                taken.append(self._turns(processes))
                memory = memory or {**processes[0].memory, **processes[0].peak_memory()}
        return [list(turns) for turns in zip(*taken, strict=True)], memory

    @contextmanager
    def _pair(
        self, subjects: Sequence[Subject], inputs: Inputs, threads: int
    ) -> Iterator[list[TimingProcess]]:
        """Starts a process for each subject, side by side, and ends all on exit."""
        with ExitStack() as stack:
            loading = [stack.enter_context(timing_process(one, inputs, threads)) for one in subjects]
            yield [wait_until_loaded() for wait_until_loaded in loading]

    def _turns(self, processes: Sequence[TimingProcess]) -> list[Turns]:
        """Warms the processes up, and returns the turns that each has taken in turn with the others."""
        counts = [self._warm_up(process.times) for process in processes]
        turns: list[Turns] = [[] for _ in processes]
        while not all(map(self._has_share, turns)):
            for process, count, own_turns in zip(processes, counts, turns, strict=True):
                own_turns.append(np.array(process.times(count)))
        return turns

    def _warm_up(self, times: Callable[[int], list[float]]) -> int:
        """Runs until a turn is no faster than the one before. Returns the number of runs that make a turn.

        A turn that is slower, or as fast, has met noise: what a process has to warm up makes it faster.
        """
        median = np.median(times(max(1, self.warmup)))
        count = max(1, round(1000 * TURN_S / median))
        for _ in range(MOST_WARM_UP_TURNS):
            before, median = median, np.median(times(count))
            if median > (1 - FASTER) * before:
                break
        return count

    def _has_share(self, turns: Turns) -> bool:
        """Returns True once one process has run its share of the iterations and seconds."""
        times = np.concatenate([np.empty(0), *turns])
        return (
            bool(turns)
            and PAIRS * len(times) >= self.iterations
            and PAIRS * times.sum() >= 1000 * self.seconds
        )


def _all_times(processes: Sequence[Turns]) -> np.ndarray:
    return np.concatenate([turn for turns in processes for turn in turns])


def speedup(reference: Sequence[Turns], subject: Sequence[Turns]) -> dict[str, float]:
    """Returns how many times as fast as ``reference`` the subject is, with a 95 % interval.

    Both arguments have one entry for each pair of processes. The processes of a pair have equally many turns.
    With t and r the median times of the subject's and the reference's turn, the speed-up is the geometric
    mean, ``exp(mean over pairs of mean over turns of log(r / t))``. The interval is Student's t over the
    logarithms of the pairs.
    """
    logarithms = [
        np.mean([np.log(np.median(slow) / np.median(fast)) for slow, fast in zip(*pair, strict=True)])
        for pair in zip(reference, subject, strict=True)
    ]
    low, high = scipy.stats.ttest_1samp(logarithms, 0).confidence_interval(0.95)
    return {
        "speedup_vs_fp32": float(np.exp(np.mean(logarithms))),
        "speedup_ci95_low": float(np.exp(low)),
        "speedup_ci95_high": float(np.exp(high)),
    }
