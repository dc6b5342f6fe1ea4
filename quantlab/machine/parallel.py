"""Work on many batches: on a CPU side by side, each on one thread, instead of one after another on all
threads."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(
    function: Callable[[T], R], items: Sequence[T], device: torch.device, most: int | None = None
) -> Generator[R]:
    """What ``function`` makes of each item, in order.

    On a CPU as many run at a time as torch has threads (``most``, if that is fewer), and every operator gets
    one: threads need not wait for each other at each of them, and results do not depend on how many there
    are. At most one result more than that is in memory.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from map(function, items)
        return
    workers = threads if most is None else min(most, threads)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
