"""Pages without a table of trials: studies side by side, and a search. They share the report's template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.reporting.comparing import ComparedTrial, compared_trials
from quantlab.reporting.content import Content, marked
from quantlab.reporting.figures import pareto
from quantlab.reporting.recommendation import Recommendation, recommend
from quantlab.reporting.sections import Section, Table, as_table
from quantlab.reporting.shapes import Plot, axis, line, plain
from quantlab.reporting.trial_table import columns, frame, number
from quantlab.results.plots import COLOURS
from quantlab.results.reading import Study
from quantlab.results.scale import Scale, scale_of

BEST, PROGRESS = "best.json", "progress.csv"  # of a search
APART = ("model", "task", "evaluation")  # overrides that make another study of a trial


def side_by_side_content(studies: Sequence[Study], max_drop: float) -> Content:
    """Studies on other checkpoints, tasks or examples. No difference is taken from one to another."""
    compared = [_Compared(study=study, rows=compared_trials(study), limit=max_drop) for study in studies]
    sections = [
        Section(id="studies", title="Side by side", tables=[_overview(compared), _trials_by_study(compared)]),
        *(_study_section(index, one) for index, one in enumerate(compared)),
    ]
    trials = sum(len(study.trials) for study in studies)
    return _content(
        title=studies[0].title,
        facts=[("Studies", str(len(studies))), ("Trials that finished", str(trials))],
        heading="Side by side",
        lead=f"{len(studies)} studies differ in checkpoint, task or examples: each is compared with its own "
        "FP32, and no difference is taken from one to another.",
        sections=sections,
        again=studies[0].command,
    )


def is_search(folder: Path) -> bool:
    """Whether it is the folder of a search that has an answer or a closest plan."""
    return (folder / BEST).is_file()


def search_content(folder: Path) -> Content:
    """The page of a search: its answer, the front, and the precision of every site."""
    summary = json.loads((folder / BEST).read_text(encoding="utf-8"))
    candidates, front = (pd.read_csv(folder / f"{name}.csv") for name in ("candidates", "front"))
    answer, unit = summary["answer"], str(summary.get("cost_unit", "of cost"))
    scale = scale_of(summary.get("score", "accuracy"))
    tables = [_candidates(scale, "front", "The front", front)]
    hand_made = {"set": summary["hand_made"].keys(), "cost": summary["hand_made"].values()}
    tables += [as_table("hand-made", "Sets that people would choose", pd.DataFrame(hand_made).astype(str))]
    sections = [
        Section(
            id="cost",
            title="Metric and cost",
            plots=_search_plots(scale, folder, candidates, front, unit),
            tables=tables,
        )
    ]
    if answer is not None:
        sections.append(Section(id="sites", title="The answer's sites", tables=[_sites(answer["sites"])]))
    sections.append(
        Section(id="candidates", title="Candidates", tables=[_candidates(scale, "all", "", candidates)])
    )
    return _content(
        title=f"Search {folder.name}",
        facts=[
            ("Goal", summary["goal"]),
            ("Met", "yes" if summary["met"] else "no"),
            ("Candidates", str(summary["candidates"])),
            ("Evaluations of the whole set", f"{summary['evaluations']:.2f}"),
        ],
        heading="The answer",
        lead=_answer_sentence(scale, answer, unit, bool(summary["met"])),
        second=_held_out_sentence(scale, answer),
        sections=[section for section in sections if section.filled],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    study: Study
    rows: Sequence[ComparedTrial]
    limit: float

    @property
    def name(self) -> str:
        first = self.study.finished[0]
        return f"{first.config['task'].get('name', '?')} on {Path(first.tags.get('checkpoint', '?')).name}"

    @property
    def recommendation(self) -> Recommendation:
        return recommend(self.study, self.rows, self.limit)


def _overview(compared: Sequence[_Compared]) -> Table:
    records, percent = [], _all_percent(compared)
    title = "FP32 (%)" if percent else "FP32"
    for one in compared:
        first, scale = one.study.finished[0], one.study.scale
        fp32 = first.number_of(f"{scale.score.name}_fp32")
        answered = next((trial.answers for trial in one.study.finished if trial.answers is not None), None)
        best = one.recommendation
        records.append(
            {
                "study": one.name,
                "metric": one.study.scale.words,
                "examples": f"{len(answered.labels):,}" if answered else "?",
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


def _answer_sentence(scale: Scale, answer: Mapping[str, Any] | None, unit: str, met: bool) -> str:
    if answer is None:
        return "No candidate was evaluated in full."
    start = "The best plan" if met else "The goal was not met; the closest plan"
    slots = f" with {answer['slots']}" if "slots" in answer else ""
    costs = f"costs {answer['cost']:g} {unit}"
    return f"{start}{slots} {costs} and {_drop_words(scale, answer)} on the rows that chose it."


def _held_out_sentence(scale: Scale, answer: Mapping[str, Any] | None) -> str:
    measured = (answer or {}).get("held_out")
    if not measured:
        return ""
    return f"On {measured['rows']:,} rows that did not choose it, it {_drop_words(scale, measured)}."


def _drop_words(scale: Scale, measured: Mapping[str, Any]) -> str:
    drop = measured["drop_points"]
    low, high = measured.get("drop_ci95_low"), measured.get("drop_ci95_high")
    ends = sorted(end if drop > 0 else -end for end in (low, high) if end is not None)
    interval = f" (95 % interval {ends[0]:+.2f} to {ends[1]:+.2f})" if len(ends) == 2 else ""
    lost = scale.lost(drop / 100)
    return f"{lost.removesuffix(f' of {scale.words}')}{interval.replace('-', '−')}"


def _search_plots(
    scale: Scale, folder: Path, candidates: pd.DataFrame, front: pd.DataFrame, unit: str
) -> list[Plot]:
    """The candidates, and the best cost against what was spent where the search kept it."""
    plots, progress = [_candidate_plot(scale, candidates, front, unit)], folder / PROGRESS
    if progress.is_file():
        table = pd.read_csv(progress)
        best = line(table["evaluations"], table["best_cost"], "best cost", 0)
        best["line"]["shape"] = "hv"
        plots.append(
            Plot(
                id="progress",
                title="Best cost",
                caption="The least cost within the limit, against the evaluations of the whole set spent.",
                traces=[best],
                data=table,
                layout={"xaxis": axis("evaluations of the whole set"), "yaxis": axis(f"best cost, {unit}")},
            )
        )
    return plots


def _candidate_plot(scale: Scale, candidates: pd.DataFrame, front: pd.DataFrame, unit: str) -> Plot:
    complete = candidates[candidates["complete"]]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": plain(table["cost"]),
            "y": plain(scale.factor * table["metric"]),
            "text": [
                f"candidate {index} ({origin})" for index, origin in table[["number", "origin"]].to_numpy()
            ],
            "hovertemplate": f"<b>%{{text}}</b><br>cost %{{x:g}}, %{{y:.2f}}{scale.unit}<extra></extra>",
            "marker": {"color": colour, "symbol": symbol, "size": 10, "line": {"width": 1}},
        }
        for name, table, colour, symbol in (
            ("candidates", complete[~complete["number"].isin(front["number"])], COLOURS[0], "circle"),
            ("on the front", front, COLOURS[1], "diamond"),
        )
    ]
    return Plot(
        id="pareto",
        title="Candidates",
        caption=f"{'Up' if scale.sign > 0 else 'Down'} and to the left is better; on the rows that choose, "
        "evaluated in full.",
        traces=[trace for trace in traces if trace["x"]],
        data=candidates,
        layout={
            "xaxis": axis(f"cost, {unit}"),
            "yaxis": axis(_metric(scale)),
        },
    )


def _candidates(scale: Scale, id: str, title: str, table: pd.DataFrame) -> Table:
    ordered = table.sort_values("cost")
    shown = pd.DataFrame(
        {
            "candidate": ordered["number"].astype(str),
            "cost": [f"{cost:g}" for cost in ordered["cost"]],
            _metric(scale): [number(scale.factor * value, ".2f") for value in ordered["metric"]],
            f"drop ({scale.loss_unit})": [number(value, "+z.2f") for value in ordered["drop_points"]],
            "rows": ordered["rows"].astype(str),
            "within the limit": ["yes" if feasible else "no" for feasible in ordered["feasible"]],
            "proposed by": ordered["origin"],
            **({"slots": ordered["slots"]} if "slots" in ordered else {}),
        }
    )
    return as_table(f"table-{id}", title, shown)


def _metric(scale: Scale) -> str:
    """The title of a search's metric."""
    return "metric (%)" if scale.percent else scale.words


def _sites(precisions: Mapping[str, str]) -> Table:
    """A row a layer, a column a role."""
    sites = pd.DataFrame(
        [(*name.split(".", 1), precision) for name, precision in precisions.items()],
        columns=["layer", "role", "precision"],
    )
    wide = sites.pivot_table(index="layer", columns="role", values="precision", aggfunc="first", sort=False)
    return as_table("sites-table", "", wide.reset_index().fillna(""), "The precision of each site.")


def _content(
    title: str,
    facts: Sequence[tuple[str, str]],
    heading: str,
    lead: str,
    sections: Sequence[Section],
    second: str = "",
    again: str = "",
) -> Content:
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
