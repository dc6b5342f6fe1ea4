"""``kernels.c``: the elementwise work of quantized networks in one pass over memory, where torch takes
several.

Built once for this processor with the machine's C compiler. Where that cannot be done torch does the work:
the process warns, the tag ``kernels`` says ``torch``, the alarm ``kernels_missing`` says why, and the next
process tries again.
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
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

_POINTER, _FLOAT, _COUNT, _INT = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.c_int


class BuildError(Exception):
    """Why the functions cannot be built or loaded, in one line."""


def library() -> ctypes.CDLL | None:
    """The built functions; None where torch has to do their work, for the reason that :func:`missing`
    gives."""
    loaded = _built()
    return None if isinstance(loaded, str) else loaded


def missing() -> str:
    """Why there are no built functions, in one line; empty where there are."""
    loaded = _built()
    return loaded if isinstance(loaded, str) else ""


def takes(*tensors: Tensor) -> bool:
    """Whether the built functions can work on these tensors: in FP32, on a CPU, nothing to differentiate."""
    plain = all(
        type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
        for x in tensors
    )
    return plain and library() is not None


def address(x: Tensor | None) -> int | None:
    """Where a tensor's numbers begin."""
    return None if x is None else x.data_ptr()


def name() -> str:
    """What does the elementwise work of quantized networks on a CPU."""
    return "torch" if library() is None else SOURCE.name


@cache
def _built() -> ctypes.CDLL | str:
    """The functions, or why there are none."""
    try:
        return _declared(_load())
    except (BuildError, OSError) as error:
        warnings.warn(f"torch does the work of {SOURCE.name}, more slowly: {error}", stacklevel=2)
        return str(error)


def _load() -> ctypes.CDLL:
    """Raises BuildError, or OSError where the cache folder cannot be read, written or executed from."""
    command = _compiler()
    version = subprocess.run([*command, "--version"], capture_output=True, check=False).stdout
    processor = sorted(torch.cpu.get_capabilities().items()) if hasattr(torch.cpu, "get_capabilities") else []
    parts: list[str | bytes] = [SOURCE.read_bytes(), repr(FLAGS), repr(command), version, repr(processor)]
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
    """``$CC``, which may be several words ("ccache gcc", "gcc -O2"), with the full path of the first; else
    ``cc``."""
    wanted = os.environ.get("CC") or "cc"
    try:
        first, *others = shlex.split(wanted)
    except ValueError as error:
        raise BuildError(f"CC={wanted!r} is no command") from error
    found = shutil.which(first)
    if found is None:
        raise BuildError(f"no C compiler: {first!r} is not on the path (set CC)")
    return [found, *others]


def _compile(command: list[str], to: Path) -> None:
    built = subprocess.run(
        [*command, *FLAGS, "-o", str(to), str(SOURCE), "-lm"], capture_output=True, text=True, check=False
    )
    if built.returncode:
        said = " ".join(built.stderr.split())[:300] or f"exit status {built.returncode}"
        raise BuildError(f"{shlex.join(command)} could not build {SOURCE.name}: {said}")
    to.chmod(0o700)


def _check_private(path: Path) -> None:
    """Code is loaded only from where nobody but this user, or root, can have put it."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022:
        raise BuildError(
            f"{path} must be this user's and writable by nobody else, it is "
            f"{stat.filemode(found.st_mode)} of user "
            f"{found.st_uid}: remove it"
        )


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    ends = [ctypes.c_int32, _INT]
    loaded.snap.argtypes = [_POINTER, _POINTER, _POINTER, _COUNT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, *ends]
    loaded.snap_channels.argtypes = [*[_POINTER] * 3, _COUNT, _COUNT, *[_POINTER] * 5, _INT]
    loaded.attend.argtypes = [*[_POINTER] * 5, *[_COUNT] * 5, _POINTER, _FLOAT, _POINTER, _POINTER, _INT]
    loaded.snap.restype = loaded.snap_channels.restype = loaded.attend.restype = _INT
    return loaded
