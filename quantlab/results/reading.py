"""Trials read from their folders, and studies of trials that compare."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.results.answers import SavedAnswers, read_answers
from quantlab.results.scale import Scale, scale_of
from quantlab.tasks.scores import loss_of
from quantlab.trial.result import RESULT, is_reference

ALIKE = {  # trials of one study share these: a name for messages, and the place in result.json
    "checkpoint": ("tags", "reference_fingerprint"),
    "task": ("config", "task", "name"),
    "data": ("tags", "data_fingerprint"),
}


HASH = re.compile(r"\b[0-9a-f]{13,}\b")
DIGITS = 12  # of a hash in messages


class MixedTrialsError(ValueError):
    """The trials differ in checkpoint, task or examples, so no differences may be taken between them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialRecord:
    """A trial as its folder has it. ``summary`` is ``result.json``, None where the trial did not finish."""

    number: int
    name: str
    folder: Path
    summary: Mapping[str, Any] | None
    settings: Mapping[str, str] = field(default_factory=dict)  # the swept overrides that this row sets
    error: str = ""
    command: str = ""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The metrics by name; empty where the trial did not finish."""
        return self.summary["metrics"] if self.summary else {}

    @property
    def tags(self) -> Mapping[str, str]:
        """The tags; empty where the trial did not finish."""
        return self.summary["tags"] if self.summary else {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The config as plain data; empty where the trial did not finish."""
        return self.summary["config"] if self.summary else {}

    @property
    def alarms(self) -> Sequence[Mapping[str, str]]:
        """The alarms, each with a name and a message."""
        return self.summary["alarms"] if self.summary else ()

    def number_of(self, name: str) -> float:
        """A scalar metric; NaN where the trial has none of that name."""
        value = self.metrics.get(name)
        return float("nan") if value is None or isinstance(value, list) else float(value)

    @property
    def reference(self) -> bool:
        """Whether this is the reference: the unquantized network, by the tag ``engine=fp32``."""
        return is_reference(self.tags)

    @property
    def partial(self) -> bool:
        """Whether the trial stopped before it had answered all selected rows."""
        return self.number_of("rows_answered") < self.number_of("rows_selected")

    @property
    def verdict(self) -> str:
        """What the trial's answers decided: ``keeps within 1 points with 448 of 5,463 rows``; "" where it was
        to answer all rows."""
        if "rows_answered" not in self.metrics:
            return ""
        scale = scale_of(loss_of(self.metrics)[0])
        word = "keeps within" if self.number_of("keeps") else "loses over"
        answered, selected = (self.number_of(f"rows_{part}") for part in ("answered", "selected"))
        limit = scale.limit(self.config["evaluation"]["max_drop"])
        return f"{word} {limit} with {answered:,.0f} of {selected:,.0f} rows"

    @cached_property
    def answers(self) -> SavedAnswers | None:
        """The answers; None where their file is missing."""
        return read_answers(self.folder) if self.summary is not None else None

    @cached_property
    def sites(self) -> pd.DataFrame | None:
        """The table of sites; None where it is missing."""
        path = self.folder / "sites.csv"
        return pd.read_csv(path) if path.is_file() else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Trials on one checkpoint and one set of examples. At least one finished."""

    title: str
    trials: tuple[TrialRecord, ...]
    root: Path | None  # where the trials' sweep keeps its files
    command: str = ""  # runs all of them again
    alarms: tuple[tuple[str, str], ...] = ()  # of all of them together, names and messages
    evaluation: Mapping[str, Any] = field(
        default_factory=dict
    )  # how a sweep's rows were evaluated, or the first trial's

    @property
    def finished(self) -> list[TrialRecord]:
        """The trials that finished."""
        return [trial for trial in self.trials if trial.summary is not None]

    @property
    def primary(self) -> str:
        """The primary metric: the one that has a loss beside it."""
        return loss_of(self.finished[0].metrics)[0]

    @cached_property
    def scale(self) -> Scale:
        """How the primary metric reads."""
        return scale_of(self.primary)

    @property
    def examples(self) -> str:
        """How many rows the trials answered, in words; ``?`` where no answers are there."""
        counts = [len(trial.answers.labels) for trial in self.finished if trial.answers is not None]
        if any(trial.partial for trial in self.finished):
            selected = max(trial.number_of("rows_selected") for trial in self.finished if trial.partial)
            return f"{selected:,.0f}, answered until a trial's loss is decided"
        return f"{counts[0]:,}" if counts else "?"

    @property
    def swept(self) -> list[str]:
        """The overrides in which the trials differ."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.settings)
        return [name for name in names if len({trial.settings.get(name, "") for trial in self.trials}) > 1]


def as_study(title: str, trials: Iterable[TrialRecord], root: Path | None) -> Study:
    """The study of trials on one checkpoint and one set of examples.

    Raises ValueError where none finished, and MixedTrialsError where checkpoint, task or data differ.
    """
    trials = tuple(trials)
    finished = [trial for trial in trials if trial.summary is not None]
    if not finished:
        errors = [trial.error.strip().split("\n")[0] for trial in trials if trial.error]
        first = f"; the first error: {errors[0]}" if errors else ""
        raise ValueError(
            f"{title}: none of {len(trials)} trials finished, so there is nothing to report{first}"
        )
    for what, place in ALIKE.items():
        _require_alike(what, place, finished)
    return Study(title=title, trials=trials, root=root, evaluation=finished[0].config.get("evaluation", {}))


def as_studies(title: str, trials: Iterable[TrialRecord], root: Path | None) -> list[Study]:
    """One study for each checkpoint, task and set of examples.

    Where there are several, trials that did not finish are in none of them.
    Raises ValueError where none finished.
    """
    trials = tuple(trials)
    groups: dict[tuple[Any, ...], list[TrialRecord]] = {}
    for trial in trials:
        if trial.summary is not None:
            key = tuple(_value(trial.summary, place) for place in ALIKE.values())
            groups.setdefault(key, []).append(trial)
    if len(groups) < 2:
        return [as_study(title, trials, root)]
    return [as_study(title, group, root) for group in groups.values()]


def _require_alike(what: str, place: tuple[str, ...], trials: Sequence[TrialRecord]) -> None:
    first, *others = trials
    for other in others:
        values = [_value(trial.summary, place) for trial in (first, other)]
        if values[0] != values[1]:
            shown = " and ".join(
                f"{_short(str(value))} ({trial.name}, {_short(trial.tags.get('reference', '?'))})"
                for value, trial in zip(values, (first, other), strict=True)
            )
            raise MixedTrialsError(
                f"the trials differ in {what} ({'.'.join(place)}): {shown}; a report compares trials on one "
                "checkpoint, one task and the same examples"
            )


def _short(text: str) -> str:
    """The text with each long hash cut to its first digits."""
    return HASH.sub(lambda match: match[0][:DIGITS], text)


def _value(tree: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def summary_of(folder: Path) -> dict[str, Any] | None:
    """Reads ``result.json`` of a trial's folder; None where it is missing.

    Raises ValueError that names the file where it is not a trial's result.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"metrics", "config", "tags", "alarms"} - summary.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a trial's result: {error}") from error
    return summary
