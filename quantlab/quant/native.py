"""``snap.c``, built once for this processor with the machine's C compiler, where there is one.

torch needs four passes over memory to quantize and dequantize; this needs one, and gives the same bits.
"""

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from quantlab.cache import cache_dir, digest, published

SOURCE = Path(__file__).with_name("snap.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

_POINTER, _FLOAT, _COUNT = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """The built functions; None where no compiler is found or it fails, and torch does the work (tag ``snap``)."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    processor = sorted(torch.cpu.get_capabilities().items()) if hasattr(torch.cpu, "get_capabilities") else []
    folder = cache_dir() / "native" / digest([SOURCE.read_bytes(), repr(FLAGS), compiler, repr(processor)])
    if not folder.is_dir():
        with published(folder) as scratch:
            target = scratch / "snap.so"
            done = subprocess.run([compiler, *FLAGS, "-o", target, SOURCE], capture_output=True, check=False)
            if done.returncode:
                (scratch / "failed.txt").write_bytes(done.stderr)
                target.unlink(missing_ok=True)
    built = folder / "snap.so"
    return _declared(ctypes.CDLL(str(built))) if built.is_file() else None


def name() -> str:
    """What quantizes activations on a CPU."""
    return "torch" if library() is None else "snap.c"


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    ends = [ctypes.c_int32, ctypes.c_int]
    loaded.snap.argtypes = [_POINTER, _POINTER, _POINTER, _COUNT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, *ends]
    loaded.snap_channels.argtypes = [*[_POINTER] * 3, _COUNT, _COUNT, *[_POINTER] * 5, ctypes.c_int]
    loaded.snap.restype = loaded.snap_channels.restype = ctypes.c_int
    return loaded
