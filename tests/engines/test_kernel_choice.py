"""Which integer kernel runs: exact and fast ones only, the same in all processes, on every processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import integer_forward
import pytest
import torch
from test_integer import weight
from tiny import ALL, logits, padded, planned, tiny_model
from torch import Tensor

from quantlab.engines import kernel_choice
from quantlab.engines.insert import insert
from quantlab.engines.kernel_choice import (
    CPU,
    GELU_SYMMETRIC,
    PRODUCT,
    arithmetic,
    check_kernel,
    chosen_kernel,
    fuses_gelu,
    product_of,
    why_no_kernel,
)
from quantlab.kernels import isa as integer
from quantlab.kernels.isa import isa
from quantlab.kernels.products import IntegerTensor, IntegerWeight, OneDnn, Product
from quantlab.methods.uniform import Uniform
from quantlab.quant.grid import AffineGrid


class Exact(Product):
    """A kernel of the tests' own: exact, and as fast as ``turns`` allows."""

    name, turns = "quick", 1

    def __init__(self, weight: IntegerWeight):
        self.weight = (weight.integers.double() * weight.scale[:, None]).T

    @staticmethod
    def fits(symmetric: bool, device: torch.device) -> bool:
        return symmetric

    def __call__(self, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        for _ in range(self.turns):
            y = ((x.integers.double() - x.zero_point) * x.scale) @ self.weight
        return y.float() if bias is None else (y + bias).float()


class Slow(Exact):
    name, turns = "slow", 40


class Unsound(Exact):
    name = "unsound"

    def __call__(self, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        return super().__call__(x, bias).clamp(-32768, 32767)


def told(monkeypatch: pytest.MonkeyPatch, times: dict[type[Product], dict[str, float]]) -> None:
    """These kernels, with these times."""
    monkeypatch.setattr(kernel_choice, "KINDS", tuple(times))
    monkeypatch.setattr(
        kernel_choice,
        "check_kernel",
        lambda kind, _: kernel_choice.KernelCheck(exact=True, times=times[kind]),
    )


def test_what_is_slow_or_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "KINDS", (Unsound, Slow, Exact))
    assert type(product_of(weight(8, 8))) is Exact and why_no_kernel(weight(8, 8)) == ""
    monkeypatch.setattr(kernel_choice, "KINDS", (Unsound, Slow))
    with pytest.raises(
        ValueError, match=rf"unsound {isa()} is not exact, slow {isa()} takes \S+ times FP32's time"
    ):
        product_of(weight(8, 8))
    assert check_kernel(Slow, CPU).times[PRODUCT] > 3 and check_kernel(
        Unsound, CPU
    ) == kernel_choice.KernelCheck(exact=False, times={})


def test_the_fastest_exact_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, {Slow: {PRODUCT: 0.9}, Exact: {PRODUCT: 0.5}, Unsound: {PRODUCT: 0.6}})
    assert chosen_kernel(True, CPU) is Exact and chosen_kernel(False, CPU) is None


def test_a_linear_whose_kernels_are_all_slow_runs_in_fp32_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told(monkeypatch, {Slow: {PRODUCT: 40.0}})
    model, ran = tiny_model(layers=1), []
    monkeypatch.setattr(Slow, "__call__", lambda *_: ran.append(1))
    plan = planned(model, ALL, Uniform(), symmetric=True)
    with insert(model, plan, "integer") as inserted:
        integers = logits(model, padded())
    with insert(model, plan):
        assert torch.equal(logits(model, padded()), integers) and not ran
    reason = (
        f"fp32: no integer kernel is exact and fast on this processor (slow {isa()} takes 40 "
        f"times FP32's time)"
    )
    assert inserted.linears["bert.encoder.layer.0.output.dense"].on == reason
    assert not any(linear.in_integers for linear in inserted.linears.values())


def test_linears_say_their_kernel_and_its_measured_time(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, {Exact: {PRODUCT: 0.25}})
    model = tiny_model(layers=1)
    with insert(model, planned(model, ALL, Uniform(), symmetric=True), "integer") as inserted:
        logits(model, padded())
    ran = inserted.linears["bert.encoder.layer.0.output.dense"]
    assert (ran.on, ran.times_fp32) == (f"quick {isa()}", 0.25)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gelu_comes_with_the_product_only_where_that_is_fast(
    symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, {OneDnn: {PRODUCT: 0.2, GELU_SYMMETRIC: 4000.0}})
    grid = AffineGrid(bits=8, symmetric=symmetric)
    onto = grid.snapper(*grid.parameters(torch.tensor([-1.0]), torch.tensor([1.0])))
    assert fuses_gelu(product_of(weight(8, 8)), onto) == (not symmetric)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A process that has tried nothing; what it measures, shortest first."""
    times = [0.5, 9.0]
    monkeypatch.setattr(kernel_choice, "time_ratios", lambda _: {PRODUCT: times.pop(0)})
    return times


def test_times_are_measured_once_for_all_processes(forgetful: list[float]) -> None:
    for _ in range(3):
        assert check_kernel.__wrapped__(Exact, CPU).times == {PRODUCT: 0.5}
    assert forgetful == [9.0]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"times": {"product": NaN}}', '{"times": []}'])
def test_stored_times_that_cannot_be_read_are_measured_again(
    text: str, empty_cache: Path, forgetful: list[float]
) -> None:
    check_kernel.__wrapped__(Exact, CPU)
    (stored,) = empty_cache.rglob("times.json")
    stored.write_text(text)
    for _ in range(2):
        assert check_kernel.__wrapped__(Exact, CPU).times == {PRODUCT: 9.0}
    assert json.loads(stored.read_text())["times"] == {PRODUCT: 9.0}


def test_a_folder_that_cannot_be_written_costs_only_time(
    own_cache: Path, forgetful: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_cache / "file").touch()
    monkeypatch.setenv("QUANTLAB_CACHE", str(own_cache / "file"))
    assert [check_kernel.__wrapped__(Exact, CPU).times[PRODUCT] for _ in range(2)] == [0.5, 9.0]


def test_measuring_leaves_threads_and_random_numbers_alone() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    times = kernel_choice.time_ratios(Exact)
    assert times.keys() == {PRODUCT} and times[PRODUCT] > 0
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_arithmetic_names_what_runs() -> None:
    line = arithmetic()
    kind = chosen_kernel(True, CPU)
    assert line == arithmetic() and line.startswith(
        f"{isa()}; symmetric weights: {kind.name if kind else 'fp32'}; "
    )


@pytest.mark.parametrize(
    "flags, limit, expected",
    [
        (("amx_int8", "avx512_vnni"), "", "amx"),
        (("amx_int8", "avx512_vnni"), "avx512_core_vnni", "avx512_vnni"),
        (("amx_int8", "avx512_vnni"), "AVX512_CORE", "avx512"),
        (("amx_int8", "avx512_vnni"), "AVX2", "avx2"),
        (("amx_int8", "avx512_vnni"), "AVX512_CORE_AMX", "amx"),
        (("avx_vnni",), "AVX512_CORE_VNNI", "avx_vnni"),
        ((), "AVX512_CORE_VNNI", "avx2"),
        ((), "", "avx2"),
    ],
)
def test_the_instruction_set_is_what_runs_not_what_the_chip_could_do(
    flags: tuple[str, ...], limit: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert integer.isa.__wrapped__() == expected


LIMITS = [
    pytest.param(limit, marks=pytest.mark.slow) for limit in ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI")
]


@pytest.mark.parametrize("limit", ["DEFAULT", *LIMITS])
def test_integers_are_right_and_not_slow_on_every_processor(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process for each, since oneDNN reads its limit once. A limit that is no less than what the processor
    has is that processor's own."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    if limit != "DEFAULT" and integer.isa.__wrapped__() == isa():
        pytest.skip(f"oneDNN runs {isa()} here without a limit too")
    done = subprocess.run(
        [sys.executable, integer_forward.__file__],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(right for right, passes in found["kernels"].values() if passes), found
    assert max(setting["error"] for setting in found["settings"].values()) < 1e-3, found
    assert max(setting["times_fp32"] for setting in found["settings"].values()) < 3, found
