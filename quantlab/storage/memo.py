"""What one process has already loaded or computed."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

KEPT = 4  # of each kind: enough for the trials of a sweep that take turns, and no pile of models in memory


class Memo:
    """Remembers the last few results of each kind by what they are a function of."""

    def __init__(self) -> None:
        self._results: dict[str, OrderedDict[Hashable, Any]] = defaultdict(OrderedDict)

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """The result for ``key``, made now if it is not there."""
        results = self._results[kind]
        if key not in results:
            results[key] = make()
        results.move_to_end(key)
        while len(results) > KEPT:
            results.popitem(last=False)
        value: T = results[key]
        return value
