"""The page of a search: its answer, the front, its candidates and the precision of every site."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.reporting.content import Content
from quantlab.reporting.plain_content import plain_page
from quantlab.reporting.sections import Section, Table, as_table
from quantlab.reporting.shapes import Plot, axis, line, plain
from quantlab.reporting.trial_table import number
from quantlab.results.plots import COLOURS
from quantlab.results.scale import Scale, scale_of

BEST, PROGRESS = "best.json", "progress.csv"


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
    return plain_page(
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
    names = scale.score.loss_names
    drop, low, high = measured[names.value], measured.get(names.low), measured.get(names.high)
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
            "yaxis": axis(_metric(scale), type=scale.spacing),
        },
    )


def _candidates(scale: Scale, id: str, title: str, table: pd.DataFrame) -> Table:
    ordered = table.sort_values("cost")
    shown = pd.DataFrame(
        {
            "candidate": ordered["number"].astype(str),
            "cost": [f"{cost:g}" for cost in ordered["cost"]],
            _metric(scale): [number(scale.factor * value, ".2f") for value in ordered["metric"]],
            scale.loss_title: [number(value, "+z.2f") for value in ordered[scale.score.loss_names.value]],
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
