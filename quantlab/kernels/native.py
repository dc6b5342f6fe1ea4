"""Builds and loads ``kernels.c``: fused C kernels that make one pass over memory where torch makes several.

The machine's C compiler builds them once for this processor. Without a compiler torch does the work. A failed
build warns, sets the tag ``kernels`` to ``torch``, raises the alarm ``kernels_missing``, and the next process
tries again.
"""

import ctypes
import os
import shlex
import shutil
import stat
import subprocess
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from quantlab.storage.files import cache_dir, digest, whole_folder

SOURCE = Path(__file__).with_name("kernels.c")
INCLUDED = tuple(SOURCE.with_name(f"{name}.h") for name in ("grids", "attention", "products"))
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

_POINTER, _FLOAT, _COUNT, _INT = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.c_int


class BuildError(Exception):
    """The kernels cannot be built or loaded; the message is one line."""


def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None if torch has to do their work; :func:`missing` says why."""
    loaded = _built()
    return None if isinstance(loaded, str) else loaded


def missing() -> str:
    """Why there are no kernels, in one line; empty if they are loaded."""
    loaded = _built()
    return loaded if isinstance(loaded, str) else ""


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels are loaded and take these tensors: FP32, on a CPU, without gradients."""
    plain = all(
        type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
        for x in tensors
    )
    return plain and library() is not None


def address(x: Tensor | None) -> int | None:
    """The memory address of a tensor's first element; None for None."""
    return None if x is None else x.data_ptr()


def name() -> str:
    """Which kernels quantized networks use on a CPU: ``kernels.c`` or ``torch``."""
    return "torch" if library() is None else SOURCE.name


def instructions() -> str:
    """The instructions with which the loaded kernels multiply integers."""
    loaded = library()
    assert loaded is not None
    return str(loaded.instructions().decode())


@cache
def _built() -> ctypes.CDLL | str:
    """The loaded kernels, or the reason why there are none. A failure warns."""
    try:
        return _declared(_load())
    except (BuildError, OSError) as error:
        warnings.warn(f"torch does the work of {SOURCE.name}, more slowly: {error}", stacklevel=2)
        return str(error)


def _load() -> ctypes.CDLL:
    """Builds the kernels unless the cache folder holds them, and loads them.

    Raises BuildError, and OSError if the cache folder cannot be read, written or executed from.
    """
    command = _compiler()
    version = subprocess.run([*command, "--version"], capture_output=True, check=False).stdout
    processor = sorted(torch.cpu.get_capabilities().items()) if hasattr(torch.cpu, "get_capabilities") else []
    sources = [path.read_bytes() for path in (SOURCE, *INCLUDED)]
    parts: list[str | bytes] = [*sources, repr(FLAGS), repr(command), version, repr(processor)]
    home = cache_dir() / "native"
    folder = home / digest(parts)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(home)
    if not folder.is_dir():
        with whole_folder(folder) as scratch:
            _compile(command, scratch / "kernels.so")
    for path in (folder, folder / "kernels.so"):
        _check_private(path)
    return ctypes.CDLL(str(folder / "kernels.so"))


def _compiler() -> list[str]:
    """The compiler's command from ``$CC``, by default ``cc``, with the full path of its first word.

    ``$CC`` may hold several words ("ccache gcc", "gcc -O2"). Raises BuildError if there is no such command.
    """
    wanted = os.environ.get("CC") or "cc"
    try:
        first, *others = shlex.split(wanted)
    except ValueError as error:
        raise BuildError(f"CC={wanted!r} is not a command") from error
    executable = shutil.which(first)
    if executable is None:
        raise BuildError(f"no C compiler: {first!r} is not on the path (set CC)")
    return [executable, *others]


def _compile(command: list[str], to: Path) -> None:
    """Compiles ``kernels.c`` into a shared library. Raises BuildError with the compiler's message."""
    built = subprocess.run(
        [*command, *FLAGS, "-o", str(to), str(SOURCE), "-lm"], capture_output=True, text=True, check=False
    )
    if built.returncode:
        said = " ".join(built.stderr.split())[:300] or f"exit status {built.returncode}"
        raise BuildError(f"{shlex.join(command)} could not build {SOURCE.name}: {said}")
    to.chmod(0o700)


def _check_private(path: Path) -> None:
    """Raises BuildError if anybody but this user and root could have written the file: its code will run."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
        raise BuildError(
            f"{path} must belong to this user and be writable by nobody else, but it is "
            f"{stat.filemode(status.st_mode)} of user {status.st_uid}: remove it"
        )


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the argument and result types of its functions, as ``kernels.c`` defines them."""
    ends = [ctypes.c_int32, _INT]
    loaded.snap.argtypes = [_POINTER, _POINTER, _POINTER, _COUNT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, *ends]
    loaded.snap_channels.argtypes = [*[_POINTER] * 3, _COUNT, _COUNT, *[_POINTER] * 5, _INT]
    loaded.snap_tokens.argtypes = [*[_POINTER] * 5, _COUNT, _COUNT, _FLOAT, _INT, *ends]
    sizes, grids = [_COUNT] * 6, [_POINTER] * 2
    loaded.attend.argtypes = [*[_POINTER] * 5, *sizes, _POINTER, _POINTER, _FLOAT, *grids, _INT]
    loaded.multiply.argtypes = [*[_POINTER] * 6, *[_COUNT] * 3, ctypes.c_int32, _POINTER, *ends]
    for function in (loaded.snap, loaded.snap_channels, loaded.snap_tokens, loaded.attend, loaded.multiply):
        function.restype = _INT
    loaded.instructions.restype = ctypes.c_char_p
    return loaded
