"""Freed memory is kept while asked to, and given back."""

import subprocess
import sys

SCRIPT = """
import psutil, torch
from quantlab.allocator import keep_freed_memory, release_freed_memory

def resident(): return psutil.Process().memory_info().rss / 2**20

{keep}
x = torch.ones(64 * 2**20 // 4)
del x
kept = resident()
release_freed_memory()
print(kept - resident())
"""


def released_mb(keep: str) -> float:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_freed_memory_is_kept_until_it_is_released() -> None:
    assert released_mb("keep_freed_memory()") > 60
    assert released_mb("") < 30
