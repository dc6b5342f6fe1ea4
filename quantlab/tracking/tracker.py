"""Where runs are recorded: a trial's, or a whole sweep's."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab.trial.result import Metric


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """What is known of a run before it starts. Two starts with one identity are one run, continued."""

    identity: str
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None  # the id of the run that this one belongs under


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run found. A list among the metrics is one value a step; files are names in the run's folder."""

    metrics: Mapping[str, Metric]
    tags: Mapping[str, str]
    files: tuple[str, ...]


class Run(ABC):
    """One run's record, open while the run lasts."""

    id: str | None = None
    problem: str | None = (
        None  # why the record did not arrive; its file in the run's folder waits for quantlab.sync
    )

    @abstractmethod
    def log(self, outcome: RunOutcome) -> None:
        """Takes what a finished run found. It is sent when the run ends."""


class Tracker(ABC):
    """Opens records. A record whose block raises is closed as failed, or as killed where a signal ended
    it."""

    @abstractmethod
    def start(self, entry: RunEntry, folder: Path) -> AbstractContextManager[Run]:
        """Opens a run whose files lie in ``folder``.

        Raises ConnectionError or OSError, within seconds, where nothing can be recorded; but a run under a
        parent goes on, and says in ``problem`` what was not recorded.
        """

    @abstractmethod
    def replay(self, entry: RunEntry, folder: Path, outcome: RunOutcome) -> str | None:
        """Records a run that finished before, unless the store has it. Returns the problem, if there is
        one."""

    @abstractmethod
    def ui(self) -> str:
        """How to look at the runs; nothing where there is nothing to look at."""

    @abstractmethod
    def unsent(self, folder: Path) -> int:
        """How many runs under ``folder`` are over and did not arrive."""

    @abstractmethod
    def tidy(self) -> None:
        """Sends what processes that are gone did not; a run in whose middle its process ended was killed."""


class UnrecordedRun(Run):
    """Nothing is kept but the run's own files."""

    def log(self, outcome: RunOutcome) -> None:
        """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class NoTracking(Tracker):
    """No tracking."""

    @contextmanager
    def start(self, entry: RunEntry, folder: Path) -> Iterator[Run]:
        yield UnrecordedRun()

    def replay(self, entry: RunEntry, folder: Path, outcome: RunOutcome) -> str | None:
        return None

    def ui(self) -> str:
        return ""

    def unsent(self, folder: Path) -> int:
        return 0

    def tidy(self) -> None:
        """Does nothing."""
