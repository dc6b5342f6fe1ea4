"""Profiles: what is run in which order, until when, and what is reported of it."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tokenizer
from tiny import tokenized

from quantlab.plan.plan import QuantPlan
from quantlab.profiling import profile as profiling
from quantlab.profiling.decoding import DecodingSubject
from quantlab.profiling.profile import MOST_WARM_UP_TURNS, PAIRS, NoProfile, TimedProfile, speedup
from quantlab.profiling.timing import Inputs, TorchSubject
from quantlab.tasks.heads import CLASSES, TOKENS

pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")  # turns of a script are all alike

SMALL = TimedProfile(warmup=2, iterations=1, seconds=0, batch_size=8, length=4)
LATENCIES = {"latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "examples_per_s"}
MEMORY = {"memory_weights_mb", "peak_memory_mb"}
SPEEDUP = {"speedup_vs_fp32", "speedup_ci95_low", "speedup_ci95_high"}


def named(name: str) -> TorchSubject:
    return TorchSubject(head=CLASSES, folder=Path(name), plan=QuantPlan(), engine="simulated", device="cpu")


TRIAL, FP32 = named("trial"), named("fp32")


@dataclass
class Scripts:
    """Workers whose runs take the milliseconds of a script, by subject, and a log of what is asked of
    them."""

    ms: dict[str, Iterable[float]]
    log: list[Any]

    @contextmanager
    def timing_process(
        self, subject: TorchSubject, inputs: Inputs, threads: int
    ) -> Iterator[Callable[[], SimpleNamespace]]:
        name, script = subject.folder.name, iter(self.ms[subject.folder.name])

        def times(count: int) -> list[float]:
            self.log.append((name, count))
            return [next(script) for _ in range(count)]

        def loaded() -> SimpleNamespace:
            self.log.append((name, "loaded"))
            return SimpleNamespace(
                times=times,
                memory={"memory_weights_mb": len(name)},
                peak_memory=lambda: self.log.append((name, "peak")) or {"peak_memory_mb": 10 * len(name)},
            )

        self.log.append((name, "starts", {key: values.shape for key, values in inputs.items()}, threads))
        try:
            yield loaded
        finally:
            self.log.append((name, "ends"))


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """By default a run of the trial takes 50 ms and one of FP32 100 ms: turns of half a second are 10 and 5
    runs."""
    made = Scripts({"trial": repeat(50.0), "fp32": repeat(100.0)}, [])

    @contextmanager
    def exclusive_timing() -> Iterator[None]:
        made.log.append("alone")
        yield
        made.log.append("not alone")

    monkeypatch.setattr(profiling, "timing_process", made.timing_process)
    monkeypatch.setattr(profiling, "exclusive_timing", exclusive_timing)
    return made


def measure(profile: TimedProfile, reference: TorchSubject | None = FP32) -> profiling.Measurements:
    return profile.measure(TRIAL, reference, tokenized(), tokenizer())


def test_a_decoders_next_token_is_timed_apart(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[TorchSubject] = []
    process = scripts.timing_process
    monkeypatch.setattr(
        profiling, "timing_process", lambda one, *others: started.append(one) or process(one, *others)
    )
    decoders = [replace(subject, head=TOKENS) for subject in (TRIAL, FP32)]
    profile = TimedProfile(warmup=2, iterations=35, seconds=0, batch_size=8, length=4, threads=1)
    measured = profile.measure(*decoders, tokenized(), tokenizer())
    assert measured.metrics["latency_p50_ms"] == measured.metrics["decode_p50_ms"] == 50
    assert measured.metrics["decode_speedup_vs_fp32"] == pytest.approx(2)
    steps = [DecodingSubject.of(one) for one in decoders]
    assert started == profiling.PAIRS * decoders + profiling.PAIRS * steps
    assert "decode_p50_ms" not in measure(profile).metrics


def test_each_pair_loads_side_by_side_warms_up_and_takes_turns(scripts: Scripts) -> None:
    measured = measure(TimedProfile(warmup=2, iterations=35, seconds=0, batch_size=8, length=4, threads=1))
    shapes = {"input_ids": (8, 4), "attention_mask": (8, 4)}
    assert scripts.log == [
        "alone",
        *(
            step
            for pair in range(PAIRS)
            for step in [
                ("trial", "starts", shapes, 1),
                ("fp32", "starts", shapes, 1),
                ("trial", "loaded"),
                ("fp32", "loaded"),
                ("trial", 2),
                ("trial", 10),
                ("fp32", 2),
                ("fp32", 5),
                *[("trial", 10), ("fp32", 5)] * 3,
                *([("trial", "peak")] if pair == 0 else []),  # memory is the first pair's
                ("fp32", "ends"),
                ("trial", "ends"),
            ]
        ),
        "not alone",
    ]
    assert measured.metrics.keys() == LATENCIES | SPEEDUP | MEMORY
    assert measured.metrics["speedup_vs_fp32"] == pytest.approx(2)
    assert (measured.metrics["memory_weights_mb"], measured.metrics["peak_memory_mb"]) == (
        5,
        50,
    )  # the trial's


def test_alone_there_is_no_speedup(scripts: Scripts) -> None:
    assert measure(SMALL, reference=None).metrics.keys() == LATENCIES | MEMORY
    assert {name for name, *_ in scripts.log[1:-1]} == {"trial"}


def test_percentiles_are_of_the_timed_runs_alone(scripts: Scripts) -> None:
    """In each process 101 runs of warm-up of 5 ms, then three turns of 100."""
    timed = np.random.default_rng(0).permutation(np.arange(1.0, 301))
    scripts.ms["trial"] = [5.0] * (1 + 100) + timed.tolist()
    measured = measure(
        TimedProfile(warmup=0, iterations=300 * PAIRS, seconds=0, batch_size=8, length=4), reference=None
    )
    p50, p95, p99, examples = (
        measured.metrics[key]
        for key in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "examples_per_s")
    )
    assert (p50, p95, p99) == pytest.approx((150.5, 285.05, 297.01))
    assert examples == pytest.approx(8 * 1000 / 150.5)
    assert measured.tags["timed_runs"] == str(300 * PAIRS)


@pytest.mark.parametrize(
    "iterations, seconds, turns",
    [(1, 0, 1), (15, 1.5, 1), (16, 0, 2), (1, 1.6, 2), (1, 3, 2), (100, 2, 7), (1, 5.1, 4)],
)
def test_turns_go_on_until_runs_and_seconds_are_enough(
    scripts: Scripts, iterations: int, seconds: float, turns: int
) -> None:
    """A third of each in each process; of the slower one too, whose turns of half a second have 5 runs."""
    profile = TimedProfile(warmup=0, iterations=iterations, seconds=seconds, batch_size=8, length=4)
    assert measure(profile).tags["timed_runs"] == str(PAIRS * 10 * turns)
    asked = [name for name, count, *_ in scripts.log[1:-1] if isinstance(count, int)]
    assert asked == [*["trial"] * 2, *["fp32"] * 2, *["trial", "fp32"] * turns] * PAIRS


def test_tags_say_how_it_was_measured(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling.psutil, "getloadavg", lambda: (1.239, 7, 8))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    tags = {"profile_threads": "3", "load_average_1m": "1.24", "timed_runs": "30"}
    assert measure(SMALL).tags == tags
    assert scripts.log[1][-1] == 3


def test_all_end_where_one_fails(scripts: Scripts) -> None:
    scripts.ms["fp32"] = (1 / zero for zero in [0])
    with pytest.raises(ZeroDivisionError):
        measure(SMALL)
    assert scripts.log[-2:] == [("fp32", "ends"), ("trial", "ends")]


@pytest.mark.parametrize(
    "warmup, turns, asked",
    [
        (3, [100], [3, 5]),
        (0, [96], [1, 5]),
        (9, [94, 90], [9, 5, 5]),
        (1, [150], [1, 5]),
        (1, [80, 60, 40, 30, 29], [1, 5, 5, 5, 5, 5]),
        (1, (100 * 0.9 ** np.arange(1, 50)).tolist(), [1, *[5] * MOST_WARM_UP_TURNS]),
    ],
    ids=["at once", "nearly", "the last two count", "slower is noise", "slow at first", "never"],
)
def test_warm_up_ends_when_a_turn_is_no_faster(warmup: int, turns: list[float], asked: list[int]) -> None:
    script, counts = iter([100, *turns]), []

    def times(count: int) -> list[float]:
        counts.append(count)
        ms = next(script)
        return [ms] * (count - count // 3) + [50 * ms] * (count // 3)  # a third of the runs is disturbed

    profile = TimedProfile(warmup=warmup, iterations=1, seconds=0, batch_size=1, length=1)
    assert profile._warm_up(times) == 5
    assert counts == asked


@pytest.mark.parametrize("ms, count", [(0.1, 5000), (3, 167), (500, 1), (4000, 1)])
def test_a_turn_is_half_a_second_and_at_least_a_run(ms: float, count: int) -> None:
    assert SMALL._warm_up(lambda runs: [ms] * runs) == count


def test_inputs_are_the_first_rows_cut_padded_and_repeated() -> None:
    data = tokenized((9, 20, 4))
    inputs = TimedProfile(warmup=0, iterations=1, seconds=0, batch_size=4, length=12).inputs(
        data, tokenizer()
    )
    expected = [(row["input_ids"] + [0] * 12)[:12] for row in (*data.rows, data.rows[0])]
    assert all(isinstance(values, np.ndarray) for values in inputs.values())
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].tolist() == expected
    assert inputs["attention_mask"].sum(1).tolist() == [9, 12, 4, 9]
    assert data.rows[1]["input_ids"][12:]  # the data are as they were


def pairs_of(medians: Iterable[float]) -> list[list[np.ndarray]]:
    """One pair of processes for each median, with two turns of it, whose means are far away."""
    return [[np.array([median, 0.01, 900, median, median])] * 2 for median in medians]


def test_speedup_has_a_t_interval_over_pairs_of_processes() -> None:
    """Logarithms 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, and the 97.5 % quantile of t with 2 degrees is
    4.30265.

    The turns of one pair differ by three times as much, and their number says nothing of the interval.
    """
    half = 4.3026527299 * 0.1 / math.sqrt(3)
    slow = [
        [np.full(5, 7 * math.exp(pair + turn)) for turn in (-0.3, 0, 0.3) * 4] for pair in (0.1, 0.3, 0.2)
    ]
    speedups = speedup(slow, [[np.full(5, 7.0)] * 12] * 3)
    expected = {"speedup_vs_fp32": 0.2, "speedup_ci95_low": 0.2 - half, "speedup_ci95_high": 0.2 + half}
    assert speedups == pytest.approx({key: math.exp(value) for key, value in expected.items()})


@pytest.mark.parametrize("ratio", [0.3, 1, 2.5])
def test_what_slows_both_alike_leaves_speedup_alone(ratio: float) -> None:
    drift = np.array([1, 3, 1.5, 8])
    assert list(speedup(pairs_of(ratio * drift), pairs_of(drift)).values()) == pytest.approx([ratio] * 3)


def noisy(ratio: float, seed: int) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """A process is faster or slower by 5 % as long as it lives, a turn by 3 %."""
    random = np.random.default_rng(seed)
    processes = np.array([ratio, 1])[:, None, None, None] * random.lognormal(
        sigma=0.05, size=(2, PAIRS, 1, 1)
    )
    slow, fast = (processes * random.lognormal(sigma=0.03, size=(2, PAIRS, 4, 1))).tolist()
    return ([[np.array(turn) for turn in turns] for turns in side] for side in (slow, fast))  # type: ignore[return-value]


def test_speedup_the_other_way_round_is_the_reciprocal() -> None:
    reference, subject = noisy(1.7, seed=0)
    there, back = (list(speedup(*pair).values()) for pair in ((reference, subject), (subject, reference)))
    ratio, low, high = there
    assert low < ratio < high
    assert back == pytest.approx([1 / ratio, 1 / high, 1 / low])


def test_intervals_hold_a_planted_speedup_19_times_of_20() -> None:
    speedups = [speedup(*noisy(1.7, seed)) for seed in range(400)]
    held = [one["speedup_ci95_low"] < 1.7 < one["speedup_ci95_high"] for one in speedups]
    assert 0.92 < np.mean(held) < 0.98


def test_off_measures_nothing() -> None:
    measured = NoProfile().measure(TRIAL, FP32, tokenized(), tokenizer())
    assert (measured.metrics, measured.tags) == ({}, {})


CPUS = os.cpu_count()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"warmup": -1}, "profile.warmup must be a whole number of at least 0, got -1"),
        ({"iterations": 0}, "profile.iterations must be a whole number of at least 1, got 0"),
        ({"seconds": -0.5}, "profile.seconds must be at least 0, got -0.5"),
        ({"seconds": "5"}, "profile.seconds must be a finite number, got '5'"),
        ({"batch_size": 0}, "profile.batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "profile.batch_size must be a whole number of at least 1, got 2.5"),
        ({"length": 0}, "profile.length must be a whole number of at least 1, got 0"),
        ({"length": "128"}, "profile.length must be a whole number of at least 1, got '128'"),
        ({"threads": 0}, f"profile.threads must be a whole number in 1..{CPUS}, got 0"),
        ({"threads": CPUS + 1}, f"profile.threads must be a whole number in 1..{CPUS}, got {CPUS + 1}"),
    ],
    ids=str,
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    least = {"warmup": 0, "iterations": 1, "seconds": 0, "batch_size": 1, "length": 1, "threads": CPUS}
    TimedProfile(**least)
    with pytest.raises(ValueError, match=message):
        TimedProfile(**least | fields)
