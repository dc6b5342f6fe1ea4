"""The content of the page about one study, section by section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from quantlab.reporting import anchors
from quantlab.reporting.causes import errors
from quantlab.reporting.comparing import ComparedTrial, compared_trials, pair_matrix, repeats
from quantlab.reporting.definitions import DEFINITIONS
from quantlab.reporting.figures import against_axes
from quantlab.reporting.matrix import matrix_content, verdict_style
from quantlab.reporting.outlier_analysis import Analysis
from quantlab.reporting.outlying import outliers
from quantlab.reporting.pareto import pareto
from quantlab.reporting.recommendation import recommend
from quantlab.reporting.sections import Section, Table, as_table
from quantlab.reporting.shapes import Plot
from quantlab.reporting.trial_table import Column, alarm_names, columns, interval, number
from quantlab.results.reading import Study

ENVIRONMENT = {
    "device_name": "Device",
    "cpu_capability": "CPU",
    "threads": "Threads",
    "git_commit": "Commit",
    "version.python": "Python",
    "version.torch": "torch",
    "version.transformers": "transformers",
    "version.quantlab": "quantlab",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """The template's values, the plots, and the table of trials."""

    values: Mapping[str, Any]
    plots: Sequence[Plot]
    table: pd.DataFrame  # the trials, as numbers


def page_content(study: Study, analysis: Analysis | None, max_drop: float) -> Content:
    """The content of a study's page; sections without content are left out."""
    rows = compared_trials(study)
    pairs = pair_matrix(study, rows)
    shown = columns(study, rows)
    sections = [section for section in _sections(study, rows, analysis) if section.filled]
    names = (
        {"trials": "Trials"}
        | ({"pairs": "Pairs"} if pairs else {})
        | {part.id: part.title for part in sections}
    )
    names |= {"reproduce": "Run again", "definitions": "Definitions"}
    commands = [(row.trial.name, row.trial.command) for row in rows if row.trial.command]
    values = {
        "title": study.title,
        "facts": _facts(study),
        "contents": list(names.items()),
        "marked": marked,
        "heading": "What to deploy",
        "answer": recommend(study, rows, max_drop),
        "rows": rows,
        "columns": shown,
        "kinds": [verdict_style(row.verdict) for row in rows],
        "table_note": _table_note(study),
        "matrix": matrix_content(study.scale, pairs) if pairs else None,
        "sections": sections,
        "again": study.command,
        "commands": commands,
        "uncommanded": _uncommanded(rows),
        "definitions": [*DEFINITIONS.items(), *_environment(study)],
    }
    plots = [plot for section in sections for plot in section.plots]
    return Content(values=values, plots=plots, table=numbers(study, rows, shown))


def _sections(study: Study, rows: Sequence[ComparedTrial], analysis: Analysis | None) -> list[Section]:
    cost, axes = pareto(study, rows), against_axes(study, rows)
    title = f"{'Accuracy' if study.scale.percent else study.scale.words.capitalize()} and cost"
    return [
        Section(id="cost", title=title, plots=[cost] if cost else []),
        Section(id="axes", title="What was swept", plots=axes, tables=_repeats(study, rows)),
        outliers(study, analysis),
        errors(study, rows, analysis),
        Section(id="alarms", title="Alarms", tables=_alarms(study)),
        Section(id="published", title="Published numbers", tables=anchors.published_tables(study, rows)),
    ]


def numbers(study: Study, rows: Sequence[ComparedTrial], shown: Sequence[Column]) -> pd.DataFrame:
    """The table of trials for the CSV: unrounded numbers, a row a trial."""
    records = []
    for row in rows:
        comparison = row.comparison
        scalars = {name: value for name, value in row.trial.metrics.items() if not isinstance(value, list)}
        tested = {"difference": row.difference, "p_corrected": row.p, "verdict": row.verdict}
        ends = {"difference_low": comparison.low, "difference_high": comparison.high} if comparison else {}
        told = {"alarms": ", ".join(alarm_names(row.trial)), "engine": row.trial.tags.get("engine", "")}
        records.append({"trial": row.trial.name, **row.trial.settings, **scalars, **tested, **ends, **told})
    return pd.DataFrame(records)


def marked(sentence: str, row: ComparedTrial | None) -> Markup:
    """The sentence as escaped HTML, with the trial's name in bold."""
    name = row.trial.name if row else ""
    before, bold, after = sentence.partition(name) if name else (sentence, "", "")
    return (
        escape(before)
        + (Markup("<strong>") + escape(bold) + Markup("</strong>") if bold else "")
        + escape(after)
    )


def _facts(study: Study) -> list[tuple[str, str]]:
    first = study.finished[0]
    fp32 = first.number_of(f"{study.primary}_fp32")
    engines = dict.fromkeys(trial.tags.get("engine", "") for trial in study.finished)
    failed = len(study.trials) - len(study.finished)
    return [
        ("Checkpoint", Path(first.tags.get("reference", "?")).name),
        ("Task", str(first.config["task"].get("name", "?"))),
        ("Examples", study.examples),
        (f"FP32 {study.scale.words}", study.scale.with_unit(fp32)),
        ("Trials", f"{len(study.trials)}" + (f", {failed} failed" if failed else "")),
        ("Engine", ", ".join(filter(None, engines))),
    ]


def _environment(study: Study) -> list[tuple[str, str]]:
    environment = []
    for tag, name in ENVIRONMENT.items():
        values = dict.fromkeys(trial.tags[tag] for trial in study.finished if trial.tags.get(tag))
        if values:
            environment.append((name, ", ".join(values)))
    seeds = dict.fromkeys(str(_seed(trial.summary)) for trial in study.finished)
    return [
        *environment,
        ("Calibration seeds", ", ".join("none: the first rows" if s == "None" else s for s in seeds)),
    ]


def _seed(summary: Mapping[str, Any] | None) -> Any:
    calibration = summary["config"].get("calibration") if summary else None
    return calibration.get("seed") if isinstance(calibration, Mapping) else None


def _table_note(study: Study) -> str:
    simulated = any(trial.tags.get("engine") == "simulated" for trial in study.finished)
    timed = any("latency_p50_ms" in trial.metrics for trial in study.finished)
    notes = []
    if simulated and timed:
        notes.append("A simulated speed is that of FP32 arithmetic on quantized values, not of integers.")
    if any(trial.partial for trial in study.finished):
        notes.append(
            f"Of a trial that stopped early, {study.scale.words} is estimated: FP32's on all rows, changed "
            "by what the answered rows lost."
        )
    return " ".join(notes)


def _repeats(study: Study, rows: Sequence[ComparedTrial]) -> list[Table]:
    groups = repeats(study, rows)
    if not groups:
        return []
    scale = study.scale
    table = pd.DataFrame(
        {
            "trial": [group.name for group in groups],
            "repeats": [len(group.values) for group in groups],
            f"mean {scale.axis}": [number(scale.factor * group.mean, ".2f") for group in groups],
            f"sd{' (points)' if scale.percent else ''}": [
                number(scale.factor * group.sd, ".2f") for group in groups
            ],
            f"range{' (%)' if scale.percent else ''}": [
                interval(scale.factor * min(group.values), scale.factor * max(group.values), ".2f")
                for group in groups
            ],
            f"mean {scale.change_title}": [
                number(scale.change(-sum(g.differences) / len(g.differences)), scale.change_format)
                for g in groups
            ],
        }
    )
    caption = (
        f"Trials that differ only in {', '.join(groups[0].over)}: the spread over repeats on the "
        f"same examples, "
    )
    caption += "which no interval above contains."
    return [as_table("repeats", "Repeats", table, caption)]


def _alarms(study: Study) -> list[Table]:
    raised: dict[str, list[tuple[str, str]]] = {}
    for trial in study.finished:
        for alarm in trial.alarms:
            raised.setdefault(alarm["name"], []).append((trial.name, alarm["message"]))
    table = pd.DataFrame(
        [
            {
                "alarm": name,
                "trials": len({trial for trial, _ in cases}),
                "which": _few([trial for trial, _ in cases]),
                "the first says": cases[0][1],
            }
            for name, cases in raised.items()
        ]
    )
    whole = pd.DataFrame(study.alarms, columns=["alarm", "it says"])
    of_all = [as_table("sweep-alarms", "Raised by the sweep as a whole", whole)] if study.alarms else []
    return of_all + ([as_table("alarm-table", "Raised by trials", table)] if raised else [])


def _few(names: Sequence[str], shown: int = 6) -> str:
    """The first names, and how many are left out."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _uncommanded(rows: Sequence[ComparedTrial]) -> str:
    without = [row.trial.name for row in rows if not row.trial.command]
    if not without:
        return ""
    return f"Without a command, as the overrides kept in .hydra/ are not beside the results: {_few(without)}."
