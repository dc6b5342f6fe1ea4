"""``kernels.c``, built once for this processor with the machine's C compiler, where there is one.

What torch does in several passes over memory needs one there. Without a compiler torch does the work; that one fails
is said, and tried again by the next process.
"""

import ctypes
import os
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from quantlab.cache import cache_dir, digest, published

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

_POINTER, _FLOAT, _COUNT, _INT = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.c_int


@cache
def library() -> ctypes.CDLL | None:
    """The built functions; None where no compiler is found or it fails, and torch does the work (tag ``kernels``)."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    processor = sorted(torch.cpu.get_capabilities().items()) if hasattr(torch.cpu, "get_capabilities") else []
    folder = cache_dir() / "native" / digest([SOURCE.read_bytes(), repr(FLAGS), compiler, repr(processor)])
    try:
        if not folder.is_dir():
            with published(folder) as scratch:
                command = [compiler, *FLAGS, "-o", str(scratch / "kernels.so"), str(SOURCE), "-lm"]
                subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        warnings.warn(f"{compiler} could not build {SOURCE}; torch does its work.\n{error.stderr}", stacklevel=2)
        return None
    return _declared(ctypes.CDLL(str(folder / "kernels.so")))


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


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    ends = [ctypes.c_int32, _INT]
    loaded.snap.argtypes = [_POINTER, _POINTER, _POINTER, _COUNT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, *ends]
    loaded.snap_channels.argtypes = [*[_POINTER] * 3, _COUNT, _COUNT, *[_POINTER] * 5, _INT]
    loaded.attend.argtypes = [*[_POINTER] * 5, *[_COUNT] * 5, _POINTER, _FLOAT, _POINTER, _POINTER, _INT]
    loaded.snap.restype = loaded.snap_channels.restype = loaded.attend.restype = _INT
    return loaded
