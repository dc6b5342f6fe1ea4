"""Work on many batches: on a CPU side by side, each on one thread, instead of one after another on all threads."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Sequence[T], device: torch.device) -> Generator[R]:
    """What ``function`` makes of each item, in order.

    On a CPU as many run at a time as torch has threads, and every operator gets one: threads need not wait for each
    other at each of them, and results do not depend on how many there are.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
