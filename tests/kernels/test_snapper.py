"""One pass in C, four in torch: the same bits, with and without a compiler."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quantlab.kernels import native
from quantlab.kernels.snapper import Snapper
from quantlab.quant.grid import AffineGrid

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
GRIDS = [AffineGrid(bits=bits, symmetric=symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]
HOSTILE = torch.tensor([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, 1e-45, 1e38, -1e38, torch.inf, -torch.inf])


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    native.library()  # hypothesis thinks a first call that compiles too slow


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.fixture
def unbuilt(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has built nothing, and builds quickly."""
    monkeypatch.setattr(native, "_built", cache(native._built.__wrapped__))
    monkeypatch.setattr(native, "FLAGS", ("-O0", "-fopenmp", "-shared", "-fPIC"))


def tensor(seed: int, rows: int, channels: int) -> Tensor:
    x = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed)) * 10
    x.view(-1)[: len(HOSTILE)] = HOSTILE[: x.numel()]
    return x


def snapper(grid: AffineGrid, channels: int) -> tuple[Snapper, Tensor, Tensor]:
    spread = torch.linspace(0.5, 20, channels)
    scale, zero_point = grid.parameters(-spread, 1.5 * spread)
    return grid.snapper(scale, zero_point), scale, zero_point


def formula(grid: AffineGrid, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """What snapping means, one operator after the other."""
    return (x * scale.reciprocal()).round().clamp(grid.q_min - zero_point, grid.q_max - zero_point) * scale


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@given(seed=st.integers(0, 99), rows=st.integers(1, 40), channels=st.integers(1, 70), each=st.booleans())
def test_c_and_torch_agree_to_the_bit(
    grid: AffineGrid, seed: int, rows: int, channels: int, each: bool
) -> None:
    x = tensor(seed, rows, channels)
    snap, scale, zero_point = snapper(grid, channels if each else 1)
    expected = formula(grid, x, scale, zero_point)
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
    assert torch.equal(y, formula(GRIDS[-2], before, scale, zero_point))
    assert (y.data_ptr() == x.data_ptr()) == overwrite
    assert overwrite or torch.equal(x, before)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_torch_alone(grid: AffineGrid, each: bool, torch_only: None) -> None:
    x = tensor(0, 9, 33)
    snap, scale, zero_point = snapper(grid, 33 if each else 1)
    assert torch.equal(snap(x), formula(grid, x, scale, zero_point))
    values, integers = snap.integers(x, values=True)
    assert values is not None and integers is not None and torch.equal(values, snap(x))
    assert torch.equal((integers.int() - snap.byte_zero_point) * scale, values)


def test_what_c_does_not_take_goes_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views are copied, other dtypes and other shapes of scale left to torch; NaN stays NaN."""
    grid, x = GRIDS[-1], tensor(3, 12, 8)
    snap, scale, zero_point = snapper(grid, 1)
    assert torch.equal(snap(x.t()), formula(grid, x.t(), scale, zero_point))
    assert torch.equal(snap(x[:, ::2]), formula(grid, x[:, ::2], scale, zero_point))
    assert snap(x.double()).dtype == torch.float64
    assert snap(torch.tensor([torch.nan])).isnan().all()
    assert snap(torch.empty(0, 8)).shape == (0, 8)
    _, each, zeros = snapper(grid, 3)
    by_head = grid.snapper(each[:, None, None], zeros[:, None, None])
    scores = torch.randn(2, 3, 5, 5)
    assert torch.equal(by_head(scores)[:, 1], formula(grid, scores[:, 1], each[1], zeros[1]))


@pytest.mark.parametrize("channels", [2, 4, 65])
def test_grids_of_other_channels_are_an_error(channels: int) -> None:
    """C would read as many grids as the tensor has channels."""
    snap, _, _ = snapper(GRIDS[-1], channels)
    for call in (snap, lambda x: snap.integers(x, values=True)):
        with pytest.raises(RuntimeError, match="size of tensor"):
            call(torch.randn(2, 64))


@pytest.mark.parametrize("what", ["one zero point", "doubles", "a view"])
def test_terms_that_c_would_misread_are_left_to_torch(what: str) -> None:
    grid, x = GRIDS[-1], tensor(3, 12, 8)
    scale, zero_point = (end.contiguous() for end in snapper(grid, 8)[1:])
    if what == "one zero point":
        zero_point = zero_point[:1]
    elif what == "doubles":
        scale = scale.double()
    else:
        scale, zero_point = scale.repeat_interleave(2)[::2], zero_point[:1].expand(8)
    snap = grid.snapper(scale, zero_point)
    assert torch.equal(snap(x), formula(grid, x, scale, zero_point))


COMPILERS = ["cc", "gcc -O2", "", "ccache gcc"]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_where_there_is_a_compiler_the_kernels_are_built(
    compiler: str, unbuilt: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if any(shutil.which(word) is None for word in (compiler or "cc").split() if not word.startswith("-")):
        pytest.skip(f"no {compiler} here")
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path))
    assert native.name() == "kernels.c" and native.missing() == ""


@needs_compiler
def test_the_kernels_compile_without_a_warning(tmp_path: Path) -> None:
    command = [
        "cc",
        *native.FLAGS,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(tmp_path / "it.so"),
        str(native.SOURCE),
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize(
    "compiler, why",
    [
        ("no-such-compiler", "no C compiler: 'no-such-compiler' is not on the path"),
        ("gcc 'O2", 'CC="gcc \'O2" is not a command'),
        ("false", "false could not build kernels.c: exit status 1"),
    ],
)
def test_without_a_compiler_torch_does_it_and_says_why(
    compiler: str, why: str, empty_cache: Path, unbuilt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    for _ in range(2):  # the next process tries again
        native._built.cache_clear()
        with pytest.warns(
            UserWarning, match=f"torch does the work of kernels.c, more slowly: .*{re.escape(why)}"
        ):
            assert native.library() is None
    assert native.name() == "torch" and why in native.missing() and "\n" not in native.missing()
    assert not list(empty_cache.rglob("*.so"))


def made_by_others(native_folder: Path) -> None:
    native_folder.chmod(0o777)


def linked(native_folder: Path) -> None:
    native_folder.rename(native_folder.with_name("elsewhere"))
    native_folder.symlink_to(native_folder.with_name("elsewhere"))


def writable_by_all(native_folder: Path) -> None:
    for path in native_folder.rglob("*.so"):
        path.chmod(0o666)


@needs_compiler
@pytest.mark.parametrize("spoil", [made_by_others, linked, writable_by_all])
def test_nothing_is_loaded_that_others_may_have_written(
    spoil: Callable[[Path], None], empty_cache: Path, unbuilt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.name() == "kernels.c"
    assert all(
        path.stat().st_mode & 0o077 == 0 for path in [empty_cache / "native", *empty_cache.glob("native/*/*")]
    )
    spoil(empty_cache / "native")
    native._built.cache_clear()
    with pytest.warns(UserWarning, match="must belong to this user and be writable by nobody else"):
        assert native.name() == "torch"


@needs_compiler
def test_nothing_is_loaded_that_another_user_owns(
    empty_cache: Path, unbuilt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_cache / "native").mkdir(mode=0o700)
    found = os.stat_result((stat.S_IFDIR | 0o700, 0, 0, 1, 1234, 1234, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "lstat", lambda _: found)
    with pytest.warns(UserWarning, match="it is drwx------ of user 1234: remove it"):
        assert native.name() == "torch"


def test_a_cache_folder_that_takes_nothing_leaves_the_work_to_torch(
    empty_cache: Path, unbuilt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_cache / "file").touch()
    monkeypatch.setenv("QUANTLAB_CACHE", str(empty_cache / "file" / "deeper"))
    with pytest.warns(UserWarning, match="torch does the work of kernels.c, more slowly: .*Not a directory"):
        assert native.name() == "torch"


@needs_compiler
def test_a_cache_folder_that_runs_nothing_leaves_the_work_to_torch(
    unbuilt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str) -> None:
        raise OSError(
            f"{path}: failed to map segment from shared object"
        )  # as on a file system mounted noexec

    monkeypatch.setattr(native.ctypes, "CDLL", load)
    with pytest.warns(UserWarning, match="failed to map segment"):
        assert native.name() == "torch"


@needs_compiler
def test_another_version_of_the_compiler_builds_anew(
    empty_cache: Path, unbuilt: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "gcc"
    for version in ("12", "13"):
        compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit\nexec cc "$@"\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        native._built.cache_clear()
        assert native.name() == "kernels.c"
    assert len(list(empty_cache.glob("native/*/kernels.so"))) == 2


@needs_compiler
def test_they_are_built_once(empty_cache: object, unbuilt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library()
    native._built.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("built again"))
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
