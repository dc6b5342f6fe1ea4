"""The end of a sweep: its table, its plots, its best trial, and what did not go well."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from quantlab.alarms import Alarm
from quantlab.cli.console import alarm_line
from quantlab.reporting.writing import write_sweep
from quantlab.results.answers import SavedAnswers, read_answers
from quantlab.results.table import Results, write_tables, write_texts
from quantlab.sweeping.alarms import flat_axes
from quantlab.sweeping.best import best_in_words, best_of
from quantlab.sweeping.prepare import PreparedSweep, PreparedTrial
from quantlab.sweeping.summary import print_places
from quantlab.sweeping.sweep import varying
from quantlab.sweeping.terminal_table import table_lines
from quantlab.tasks.scores import loss_of
from quantlab.trial.result import is_reference

QUESTION = ("reference_fingerprint", "data_fingerprint")  # tags that say what was asked of which model


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedSweep:
    """What a sweep has to show."""

    results: Results | None  # None where no trial finished
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    files: tuple[Path, ...]
    errors: Mapping[str, str]  # by key
    undrawn: tuple[str, ...]  # why a plot is missing
    alarms: tuple[Alarm, ...] = ()  # of the sweep as a whole; each trial has its own

    def complaint(self, sweeping: PreparedSweep) -> str:
        """What failed, and what did not reach the tracker; nothing where all went well."""
        folders = [sweeping.folder, *map(sweeping.store.folder, sweeping.unique)]
        lost = sum(map(sweeping.tracking.unsent, folders))
        first = next(iter(self.errors.values()), "").strip().split("\n")[0]
        failed = f"{len(self.errors)} of {len(sweeping.unique)} trials failed, the first with: {first}"
        again = "the same command runs what is missing"
        waiting = (
            f"{lost} runs were not recorded; send them with: python -m quantlab.sync {sweeping.store.root}"
        )
        lines = ([f"{failed}; {again}"] if self.errors else []) + ([waiting] if lost else [])
        return "\n".join([*lines, *self.undrawn])


def write_sweep_files(sweeping: PreparedSweep, reused: Set[str], errors: Mapping[str, str]) -> FinishedSweep:
    """Tables and plots in the sweep's folder."""
    results = gather_results(sweeping, reused, errors)
    files: list[Path] = [sweeping.folder / "multirun.yaml"]
    undrawn = []
    alarms = flat_axes(results) if results else ()
    chosen, best = None, ""
    if results is not None:
        if one_question(sweeping):
            answers, evaluation = _answers(sweeping, results.table["key"]), sweeping.trials[0].evaluation
            chosen = best_of(results, answers, evaluation)
            best = best_in_words(chosen, results, evaluation)
        files += write_tables(results, sweeping.folder)
        raised = pd.DataFrame([asdict(alarm) for alarm in alarms], columns=["name", "message"])
        files += write_texts(sweeping.folder, {"alarms.csv": raised.to_csv(index=False)})
        for view in sweeping.sweep.views:
            try:
                files += view.draw(results, sweeping.folder)
            except ValueError as error:
                undrawn.append(f"{type(view).__name__} was not drawn: {error}")
        try:
            files.append(write_sweep(sweeping.folder))
        except (ValueError, OSError, LookupError, TypeError) as error:
            undrawn.append(f"the report was not written: {error}")
    total = len(sweeping.unique)
    counts = {"trials": total, "trials_reused": len(reused), "trials_failed": len(errors)}
    counts["trials_done"] = total - len(reused) - len(errors)
    return FinishedSweep(
        results=results,
        files=tuple(files),
        errors=errors,
        undrawn=tuple(undrawn),
        metrics={name: float(count) for name, count in counts.items()}
        | ({f"best_{chosen.metric}": chosen.value} if chosen else {}),
        tags=({"best": best} if best else {})
        | ({"best_key": chosen.key} if chosen else {})
        | {"alarms": ", ".join(dict.fromkeys(alarm.name for alarm in alarms))},
        alarms=alarms,
    )


def one_question(sweeping: PreparedSweep) -> bool:
    """Whether all finished trials answered the same rows with one checkpoint, so that one can be the best."""
    summaries = filter(None, map(sweeping.store.summary, sweeping.unique))
    return len({tuple(summary["tags"].get(name) for name in QUESTION) for summary in summaries}) == 1


def print_sweep(
    ended: FinishedSweep, sweeping: PreparedSweep, console: Console, page: Sequence[str] = ()
) -> None:
    """Prints the table, the best trial, and at the end where the files and the tracker's ``page`` are."""
    if ended.results is not None:
        if sweeping.sweep.question:
            console.print(sweeping.sweep.question)
        for line in table_lines(ended.results, console.width):
            console.print(line)
    counts = [f"{ended.metrics[f'trials_{what}']:.0f} {what}" for what in ("done", "reused", "failed")]
    console.print(", ".join(counts))
    for alarm in ended.alarms:
        console.print(alarm_line(alarm.name, alarm.message))
    if "best" in ended.tags:
        console.print(f"best: {ended.tags['best']}")
    report = [str(path) for path in ended.files if path.suffix == ".html"]
    print_places(console, {"report": report, "results": [str(sweeping.folder)], "MLflow": page})


def gather_results(sweeping: PreparedSweep, reused: Set[str], errors: Mapping[str, str]) -> Results | None:
    """Every row of the sweep with what its trial found; None where no trial finished."""
    trials = sweeping.trials
    summaries = {key: sweeping.store.summary(key) for key in sweeping.unique}
    finished = [summary for summary in summaries.values() if summary]
    if not finished:
        return None
    swept = varying([trial.row for trial in trials])
    rows = [
        _row(number, trial, swept, summaries[trial.key], trial.key in reused, errors.get(trial.key, ""))
        for number, trial in enumerate(trials, start=1)
    ]
    primary = loss_of(finished[0]["metrics"])[0]
    answers = _answers(sweeping, [key for key, summary in summaries.items() if summary])
    whole = not any(found and found.rows is not None for found in answers.values())
    units = [found.units(primary) if (found := answers.get(trial.key)) else None for trial in trials]
    return Results(
        table=pd.DataFrame(rows),
        primary=primary,
        swept=swept,
        correct=_stacked(units) if whole else None,
        title=sweeping.sweep.question or sweeping.sweep.name,
    )


def _row(
    number: int,
    trial: PreparedTrial,
    swept: tuple[str, ...],
    summary: Mapping[str, Any] | None,
    reused: bool,
    error: str,
) -> dict[str, Any]:
    row = trial.row
    known = {"number": number, "block": row.block, "name": row.name, "key": trial.key}
    known["status"] = "failed" if summary is None else "reused" if reused else "done"
    known["reference"] = summary is not None and is_reference(summary["tags"])
    metrics = summary["metrics"] if summary else {}
    single = {name: value for name, value in metrics.items() if not isinstance(value, list)}
    scalars = {name: math.nan if value is None else value for name, value in single.items()}
    alarms = ", ".join(dict.fromkeys(alarm["name"] for alarm in summary["alarms"])) if summary else ""
    return (
        known
        | {name: row.settings.get(name, "") for name in swept}
        | scalars
        | {"alarms": alarms, "error": error}
    )


def _stacked(right: list[np.ndarray | None]) -> np.ndarray | None:
    """(rows, examples), NaN for trials that failed; None where the trials did not answer the same
    examples."""
    lengths = {len(answers) for answers in right if answers is not None}
    if len(lengths) != 1:
        return None
    nothing = np.full(lengths.pop(), math.nan)
    return np.stack([nothing if answers is None else answers for answers in right])


def _answers(sweeping: PreparedSweep, keys: Iterable[str]) -> dict[str, SavedAnswers | None]:
    """What finished trials answered, by key, each once."""
    return {key: read_answers(sweeping.store.folder(key)) for key in dict.fromkeys(keys)}
