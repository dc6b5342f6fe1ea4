"""Freed memory is kept while asked to, and given back."""

import subprocess
import sys

SCRIPT = """
import psutil, torch
from quantlab.machine.allocator import keep_freed_memory, release_freed_memory

def resident(): return psutil.Process().memory_info().rss / 2**20

def released():
    x = torch.ones(64 * 2**20 // 4)
    del x
    kept = resident()
    release_freed_memory()
    return kept - resident()

print(released())
keep_freed_memory()
print(released())
"""


def test_freed_memory_is_kept_until_it_is_released() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    by_default, kept = map(float, done.stdout.split())
    assert kept > 60 and by_default < 30
