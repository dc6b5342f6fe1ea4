"""Where trials are recorded."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.result import TrialResult


class Run(ABC):
    """One trial's record, open while the trial runs."""

    @abstractmethod
    def log(self, result: TrialResult, files: Sequence[Path]) -> None:
        """Records a finished trial with its files."""


class Tracker(ABC):
    """Opens records. A record whose block raises is closed as failed."""

    @abstractmethod
    def start(self, name: str, params: dict[str, Any]) -> AbstractContextManager[Run]:
        """Raises ConnectionError or OSError, within seconds, where nothing can be recorded."""


class Unrecorded(Run):
    """Nothing is kept but the trial's own files."""

    def log(self, result: TrialResult, files: Sequence[Path]) -> None:
        """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class Off(Tracker):
    """No tracking."""

    @contextmanager
    def start(self, name: str, params: dict[str, Any]) -> Iterator[Run]:
        yield Unrecorded()
