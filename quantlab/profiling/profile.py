"""Latency and memory of one model on one machine, so measured that they cannot mislead.

Each subject runs in a fresh process of its own. Next to FP32 the two take turns (A B A B), so that whatever
else the machine does slows both alike. Where a process's memory happens to lie makes it faster or slower for
as long as it lives, so several pairs of processes are timed, one after another, and the ratio's interval is
over the pairs.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil
import scipy
import torch

from quantlab.config.checks import at_least, whole
from quantlab.profiling.timing import Inputs, Subject, exclusive_timing, timing_process
from quantlab.tasks.batching import Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[np.ndarray]  # of one process: each turn's times in ms

TURN_S = 0.5
STABLE = 0.05  # two turns in a row whose medians differ by less end the warm-up
MOST_WARM_UP_TURNS = 20
PAIRS = 3  # of processes; each takes its share of the runs and seconds


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Latencies of one batch in ms, examples a second, the ratio to FP32, and memory in MB (2^20 bytes)."""

    metrics: dict[str, float]
    tags: dict[str, str]


class Profile(ABC):
    """How a model is timed, if at all."""

    @abstractmethod
    def measure(
        self, subject: Subject, reference: Subject | None, data: Tokenized, tokenizer: PreTrainedTokenizerBase
    ) -> Measurements:
        """Times the subject on real rows, in turns with ``reference`` where there is one."""


@dataclass(frozen=True, kw_only=True)
class NoProfile(Profile):
    """No measurement."""

    def measure(
        self, subject: Subject, reference: Subject | None, data: Tokenized, tokenizer: PreTrainedTokenizerBase
    ) -> Measurements:
        return Measurements(metrics={}, tags={})


@dataclass(frozen=True, kw_only=True)
class TimedProfile(Profile):
    """At least ``iterations`` runs and ``seconds`` of them, in equal shares in each of :data:`PAIRS`
    processes.

    Each process first runs at least ``warmup`` times and until its times are stable. A run is one batch of
    ``batch_size`` rows of ``length`` tokens on ``threads`` threads (null: as many as torch uses).
    A GPU is timed with CUDA events, a CPU with the wall clock.
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

    def measure(
        self, subject: Subject, reference: Subject | None, data: Tokenized, tokenizer: PreTrainedTokenizerBase
    ) -> Measurements:
        """Waits until no other timing runs on this host, so that no two share a processor.

        Raises RuntimeError where a quantizer of the plan did not run in every run, and what a process raised.
        """
        inputs, threads = self.inputs(data, tokenizer), self.threads or torch.get_num_threads()
        subjects = [subject] if reference is None else [subject, reference]
        with exclusive_timing():
            load = psutil.getloadavg()[0]
            timed, memory = self.in_turns(subjects, inputs, threads)
        times = np.concatenate([turn for turns in timed[0] for turn in turns])
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
        return Measurements(
            metrics={
                "latency_p50_ms": p50,
                "latency_p95_ms": p95,
                "latency_p99_ms": p99,
                "examples_per_s": float(1000 * self.batch_size / times.mean()),
                **({} if reference is None else speedup(timed[1], timed[0])),
                **memory,
            },
            tags={
                "profile_threads": str(threads),
                "load_average_1m": f"{load:.2f}",
                "timed_runs": str(len(times)),
            },
        )

    def inputs(self, data: Tokenized, tokenizer: PreTrainedTokenizerBase) -> Inputs:
        """One batch of the first rows, cut or padded to ``length``; fewer than a batch are repeated."""
        rows = [data.rows[index % len(data)] for index in range(self.batch_size)]
        cut = [{name: values[: self.length] for name, values in row.items()} for row in rows]
        padded = tokenizer.pad(cut, padding="max_length", max_length=self.length, return_tensors="np")
        return {name: np.asarray(values) for name, values in padded.items()}

    def in_turns(
        self, subjects: Sequence[Subject], inputs: Inputs, threads: int
    ) -> tuple[list[list[Turns]], dict[str, float]]:
        """For each subject the times of each of its processes, turn by turn; and the memory of the first
        one's first.

        One process of each subject lives at a time, and these take turns.
        """
        together = [self._together(subjects, inputs, threads) for _ in range(PAIRS)]
        return [
            list(processes) for processes in zip(*(turns for turns, _ in together), strict=True)
        ], together[0][1]

    def _together(
        self, subjects: Sequence[Subject], inputs: Inputs, threads: int
    ) -> tuple[list[Turns], dict[str, float]]:
        """One process of each subject: its turns' times; and the first one's memory."""
        with ExitStack() as stack:
            starting = [stack.enter_context(timing_process(one, inputs, threads)) for one in subjects]
            workers = [loaded() for loaded in starting]
            counts = [self._warm_up(worker.times) for worker in workers]
            turns: list[Turns] = [[] for _ in workers]
            while not all(map(self._enough, turns)):
                for worker, count, taken in zip(workers, counts, turns, strict=True):
                    taken.append(np.array(worker.times(count)))
            return turns, {**workers[0].memory, **workers[0].peak_memory()}

    def _warm_up(self, times: Callable[[int], list[float]]) -> int:
        """Runs until two turns are alike; returns how many runs make a turn."""
        done = times(max(1, self.warmup))
        count = max(1, round(1000 * TURN_S / np.median(done)))
        median = np.median(times(count))
        for _ in range(MOST_WARM_UP_TURNS):
            before, median = median, np.median(times(count))
            if abs(median / before - 1) < STABLE:
                break
        return count

    def _enough(self, turns: Turns) -> bool:
        """Whether a process has its share of the runs and seconds."""
        times = np.concatenate([np.empty(0), *turns])
        return (
            bool(turns)
            and PAIRS * len(times) >= self.iterations
            and PAIRS * times.sum() >= 1000 * self.seconds
        )


def speedup(reference: Sequence[Turns], subject: Sequence[Turns]) -> dict[str, float]:
    """How many times as fast as ``reference`` the subject is, with its 95 % interval.

    Both have one entry for each pair of processes, with as many turns each. A turn's ratio is that of its
    median times, a pair's the geometric mean of its turns', the speed-up that of the pairs'; the interval is
    Student's t over the logarithms of the pairs' ratios.
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
