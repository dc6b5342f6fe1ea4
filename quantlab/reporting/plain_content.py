"""Pages without a table of trials, in the report's template; the page of studies side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from quantlab.reporting.comparing import ComparedTrial, compared_trials
from quantlab.reporting.content import Content, marked
from quantlab.reporting.pareto import pareto
from quantlab.reporting.recommendation import Recommendation, recommend
from quantlab.reporting.sections import Section, Table, as_table
from quantlab.reporting.trial_table import columns, frame, number
from quantlab.results.reading import Study

APART = ("model", "task", "evaluation")  # overrides that make another study of a trial


def side_by_side_content(studies: Sequence[Study], max_drop: float) -> Content:
    """Studies on other checkpoints, tasks or examples. No difference is taken from one to another."""
    compared = [_Compared(study=study, rows=compared_trials(study), limit=max_drop) for study in studies]
    sections = [
        Section(id="studies", title="Side by side", tables=[_overview(compared), _trials_by_study(compared)]),
        *(_study_section(index, one) for index, one in enumerate(compared)),
    ]
    trials = sum(len(study.trials) for study in studies)
    return plain_page(
        title=studies[0].title,
        facts=[("Studies", str(len(studies))), ("Trials that finished", str(trials))],
        heading="Side by side",
        lead=f"{len(studies)} studies differ in checkpoint, task or examples: each is compared with its own "
        "FP32, and no difference is taken from one to another.",
        sections=sections,
        again=studies[0].command,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    study: Study
    rows: Sequence[ComparedTrial]
    limit: float

    @property
    def name(self) -> str:
        first = self.study.finished[0]
        return f"{first.config['task'].get('name', '?')} on {Path(first.tags.get('reference', '?')).name}"

    @property
    def recommendation(self) -> Recommendation:
        return recommend(self.study, self.rows, self.limit)


def _overview(compared: Sequence[_Compared]) -> Table:
    records, percent = [], _all_percent(compared)
    title = "FP32 (%)" if percent else "FP32"
    for one in compared:
        first, scale = one.study.finished[0], one.study.scale
        fp32 = first.number_of(f"{scale.score.name}_fp32")
        best = one.recommendation
        records.append(
            {
                "study": one.name,
                "metric": one.study.scale.words,
                "examples": one.study.examples,
                title: number(scale.factor * fp32, ".2f") + ("" if percent else scale.unit),
                "to deploy": best.chosen.trial.name if best.chosen and best.within else "none",
            }
        )
    return as_table("overview", "Studies", pd.DataFrame(records))


def _trials_by_study(compared: Sequence[_Compared]) -> Table:
    """A row a trial, a column a study: the metric, and in brackets the difference to that study's FP32."""
    cells: dict[str, dict[str, str]] = {}
    for one in compared:
        for row in one.rows:
            difference = number(row.scale.change(-row.difference), row.scale.change_format)
            text = number(row.scale.factor * row.value, ".2f") + (f" ({difference})" if difference else "")
            cells.setdefault(_name_without_study(row.trial.name), {})[one.name] = text
    table = pd.DataFrame(
        [
            {"trial": name, **{one.name: of_study.get(one.name, "") for one in compared}}
            for name, of_study in cells.items()
        ]
    )
    caption = "Percent, and in brackets the points of difference to the FP32 network of the same study."
    if not _all_percent(compared):
        caption += " A perplexity stands as it is, and in brackets is its ratio to that network's."
    return as_table("trials-by-study", "Trials", table, caption)


def _all_percent(compared: Sequence[_Compared]) -> bool:
    """Whether every study's metric is shown in percent."""
    return all(one.study.scale.percent for one in compared)


def _name_without_study(name: str) -> str:
    """A trial's name without the settings that put it in another study."""
    words = [word for word in name.split() if word.split("=")[0].split(".")[0] not in APART]
    return " ".join(words) or name


def _study_section(index: int, one: _Compared) -> Section:
    plot, best = pareto(one.study, one.rows), one.recommendation
    table = frame([column for column in columns(one.study, one.rows) if not column.folded])
    return Section(
        id=f"study-{index}",
        title=one.name,
        paragraphs=[best.deploy, best.worst],
        plots=[replace(plot, id=f"pareto-{index}")] if plot else [],
        tables=[as_table(f"trials-{index}", "", table)],
    )


def plain_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    heading: str,
    lead: str,
    sections: Sequence[Section],
    second: str = "",
    again: str = "",
) -> Content:
    """A page whose answer is the text ``lead``, with ``second`` below it."""
    names = {section.id: section.title for section in sections}
    answer = Recommendation(chosen=None, within=False, deploy=lead, failed=None, worst=second)
    values = {
        "title": title,
        "facts": facts,
        "contents": list(names.items()),
        "marked": marked,
        "heading": heading,
        "answer": answer,
        "rows": [],
        "columns": [],
        "kinds": [],
        "table_note": "",
        "matrix": None,
        "sections": sections,
        "again": again,
        "commands": [],
        "uncommanded": "",
        "definitions": [],
    }
    plots = [plot for section in sections for plot in section.plots]
    return Content(values=values, plots=plots, table=pd.DataFrame())
