"""One pass in C, four in torch: the same bits, with and without a compiler."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quantlab.quant import native
from quantlab.quant.grid import AffineGrid
from quantlab.quant.snapper import Snapper

GRIDS = [AffineGrid(bits=bits, symmetric=symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]
HOSTILE = torch.tensor([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, 1e-45, 1e38, -1e38, torch.inf, -torch.inf])


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    native.library()  # hypothesis thinks a first call that compiles too slow


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.fixture
def unbuilt() -> Iterator[None]:
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def tensor(seed: int, rows: int, channels: int) -> Tensor:
    x = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed)) * 10
    x.view(-1)[: len(HOSTILE)] = HOSTILE[: x.numel()]
    return x


def snapper(grid: AffineGrid, channels: int) -> tuple[Snapper, Tensor, Tensor]:
    spread = torch.linspace(0.5, 20, channels)
    scale, zero_point = grid.parameters(-spread, 1.5 * spread)
    return grid.snapper(scale, zero_point), scale, zero_point


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@given(seed=st.integers(0, 99), rows=st.integers(1, 40), channels=st.integers(1, 70), each=st.booleans())
def test_c_and_torch_agree_to_the_bit(grid: AffineGrid, seed: int, rows: int, channels: int, each: bool) -> None:
    x = tensor(seed, rows, channels)
    snap, scale, zero_point = snapper(grid, channels if each else 1)
    expected = (x * scale.reciprocal()).round().clamp(grid.q_min - zero_point, grid.q_max - zero_point) * scale
    assert snap(x).view(torch.int32).equal(expected.view(torch.int32))
    values, integers = snap.integers(x, values=True)
    assert values is not None and values.view(torch.int32).equal(expected.view(torch.int32))
    assert (
        integers is not None
        and integers.dtype == torch.uint8
        and torch.equal((integers.int() - snap.byte_zero_point) * scale, expected)
    )
    alone = snap.integers(x, values=False)
    assert alone[0] is None and alone[1] is not None and torch.equal(alone[1], integers)


@given(overwrite=st.booleans(), each=st.booleans())
def test_a_tensor_is_overwritten_only_where_that_is_allowed(overwrite: bool, each: bool) -> None:
    x = tensor(0, 9, 33)
    before = x.clone()
    scale, zero_point = GRIDS[-2].parameters(*2 * [torch.linspace(0.5, 20, 33 if each else 1)])
    y = GRIDS[-2].snapper(scale, zero_point, overwrite)(x)
    assert torch.equal(y, GRIDS[-2].snap(before, scale, zero_point))
    assert torch.equal(x, before) or (overwrite and x.data_ptr() == y.data_ptr())


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_torch_alone(grid: AffineGrid, each: bool, torch_only: None) -> None:
    x = tensor(0, 9, 33)
    snap, scale, zero_point = snapper(grid, 33 if each else 1)
    assert torch.equal(snap(x), grid.snap(x, scale, zero_point))
    values, integers = snap.integers(x, values=True)
    assert values is not None and integers is not None and torch.equal(values, snap(x))
    assert torch.equal((integers.int() - snap.byte_zero_point) * scale, values)


def test_what_c_does_not_take_goes_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views are copied, other dtypes and other shapes of scale left to torch; NaN stays NaN."""
    grid, x = GRIDS[-1], tensor(3, 12, 8)
    snap, scale, zero_point = snapper(grid, 1)
    assert torch.equal(snap(x.t()), grid.snap(x.t(), scale, zero_point))
    assert torch.equal(snap(x[:, ::2]), grid.snap(x[:, ::2], scale, zero_point))
    assert snap(x.double()).dtype == torch.float64
    assert snap(torch.tensor([torch.nan])).isnan().all()
    assert snap(torch.empty(0, 8)).shape == (0, 8)
    _, each, zeros = snapper(grid, 3)
    by_head = grid.snapper(each[:, None, None], zeros[:, None, None])
    scores = torch.randn(2, 3, 5, 5)
    assert torch.equal(by_head(scores)[:, 1], grid.snapper(each[1], zeros[1])(scores[:, 1]))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_where_there_is_a_compiler_the_kernels_are_built(empty_cache: object, unbuilt: None) -> None:
    assert native.name() == "kernels.c"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_the_kernels_compile_without_a_warning(tmp_path: Path) -> None:
    command = ["cc", *native.FLAGS, "-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / "it.so"), str(native.SOURCE)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


def test_without_a_compiler_torch_does_it(unbuilt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.library() is None and native.name() == "torch"


def test_a_compiler_that_fails_is_said_and_asked_again(
    empty_cache: Path, unbuilt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    for _ in range(2):
        native.library.cache_clear()
        with pytest.warns(UserWarning, match="could not build .*kernels.c; torch does its work"):
            assert native.name() == "torch"
    assert not list(empty_cache.rglob("*.so"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_they_are_built_once(empty_cache: object, unbuilt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library()
    native.library.cache_clear()
    monkeypatch.setattr(native.subprocess, "run", lambda *_, **__: pytest.fail("built again"))
    assert native.name() == "kernels.c"


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("channels", [1, 33])
@pytest.mark.parametrize("at", [0, 150, -1])
def test_nan_has_no_integers(
    at: int, channels: int, values: bool, compiled: bool, request: pytest.FixtureRequest
) -> None:
    if not compiled:
        request.getfixturevalue("torch_only")
    x = tensor(1, 9, 33)
    snap, _, _ = snapper(GRIDS[-2], channels)
    assert snap.integers(x, values)[1] is not None
    x.view(-1)[at] = torch.nan
    snapped, integers = snap.integers(x, values)
    assert integers is None
    assert snapped is None or torch.equal(snapped.isnan(), x.isnan())
