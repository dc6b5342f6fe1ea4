"""The C library's allocator, told that freed tensors will be wanted again.

By default glibc hands large blocks back to the system when they are freed and gets them page by page the next
time: every activation of every batch pays for it, a seventh of an evaluation on a CPU (LOG.md).
"""

import ctypes
import sys
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES, LARGEST_BLOCK_BYTES = 2**31 - 1, 2**30


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, until :func:`release_freed_memory`. Does nothing without glibc."""
    if mallopt := _libc("mallopt"):
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def release_freed_memory() -> None:
    """Gives all freed memory back, so that the process is as large as what it uses. Does nothing without
    glibc."""
    if malloc_trim := _libc("malloc_trim"):
        malloc_trim(0)


def _libc(name: str) -> Callable[..., int] | None:
    """A function of the C library that runs this process; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
