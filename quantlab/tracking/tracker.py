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


@dataclass(frozen=True, kw_only=True)
class RunsTable:
    """A table of runs for a tracker's web page: which runs, in which order, in which columns."""

    tag: str  # the runs that have this tag ...
    value: str  # ... with this value
    order_by: str  # a metric
    ascending: bool = False  # whether its lowest value comes first
    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class Run(ABC):
    """One run's record, open while the run lasts.

    The tracker sets ``id`` when the run starts. It sets ``problem`` when the run has ended: read it after the
    ``with`` block.
    """

    id: str | None = None  # None where nothing is recorded
    problem: str | None = None  # why the record did not arrive; quantlab.sync sends it later

    @abstractmethod
    def log(self, outcome: RunOutcome) -> None:
        """Takes the outcome of a finished run. The tracker sends it when the run ends."""


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
    def run_id(self, entry: RunEntry, folder: Path) -> str | None:
        """The id of a run that was recorded from ``folder``; None where nothing is recorded."""

    @abstractmethod
    def run_page(self, run_id: str | None) -> tuple[str, ...]:
        """The lines that lead to a run's web page: a command that serves it, where one is needed, and a URL.
        Empty where nothing is recorded."""

    @abstractmethod
    def table_page(self, table: RunsTable) -> tuple[str, ...]:
        """The lines that lead to a table of runs, as :meth:`run_page` has them."""

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

    def run_id(self, entry: RunEntry, folder: Path) -> str | None:
        return None

    def run_page(self, run_id: str | None) -> tuple[str, ...]:
        return ()

    def table_page(self, table: RunsTable) -> tuple[str, ...]:
        return ()

    def unsent(self, folder: Path) -> int:
        return 0

    def tidy(self) -> None:
        """Does nothing."""
