"""Writes a report: the page, or its table for a paper."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import pandas as pd

from quantlab.reporting.comparing import compared_trials
from quantlab.reporting.content import page_content
from quantlab.reporting.options import MAX_DROP
from quantlab.reporting.outlier_analysis import Analysis, analysis_of
from quantlab.reporting.page import render
from quantlab.reporting.plain_content import side_by_side_content
from quantlab.reporting.search_content import is_search, search_content
from quantlab.reporting.sources import studies_from_folders
from quantlab.reporting.trial_table import columns, frame
from quantlab.results.reading import Study
from quantlab.results.table import latex, markdown
from quantlab.storage.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRAP = 28  # characters of a line in the picture of a table


def write_page(folders: Sequence[Path], analysis: Path | None, out: Path, max_drop: float) -> None:
    """Writes the page of a search, of trials that compare, or of several studies side by side.

    Raises ValueError where a folder is none of these, or ``analysis`` belongs to another checkpoint.
    """
    if len(folders) == 1 and is_search(folders[0]):
        _written(out, render(search_content(folders[0])))
        return
    studies = studies_from_folders(folders)
    if len(studies) == 1:
        write_report(studies[0], analysis_of(studies[0], analysis), out, "html", max_drop)
        return
    _written(out, render(side_by_side_content(studies, max_drop)))


def write_report(study: Study, analysis: Analysis | None, out: Path, format: str, max_drop: float) -> None:
    """Writes a study's page or table as one whole file. Raises OSError where it cannot be written."""
    if format == "html":
        _written(out, render(page_content(study, analysis, max_drop)))
        return
    table = frame(columns(study, compared_trials(study)))
    if format == "png":
        _saved(out, picture(table, study.title))
        return
    _written(out, markdown(table) if format == "md" else latex(table).replace("< ", "$<$ "))


def write_sweep(folder: Path) -> Path:
    """Writes the page of a sweep that has ended into the sweep's folder. Returns the file."""
    out = folder / "report.html"
    write_page([folder], None, out, max_drop=MAX_DROP)
    return out


def picture(table: pd.DataFrame, title: str) -> Figure:
    """Draws a table as a figure. Texts are wrapped; a column is as wide as its longest line."""
    from matplotlib.figure import Figure

    cells = table.map(lambda text: fill(text.replace(" (", "\n("), WRAP))
    heads = [fill(name, WRAP) for name in table.columns]
    lines = [[head, *cells.iloc[:, index]] for index, head in enumerate(heads)]
    widths = [max(len(line) for text in column for line in text.split("\n")) + 2 for column in lines]
    heights = [1 + max(text.count("\n") for text in row) for row in zip(*lines, strict=True)]
    figure = Figure(figsize=(0.075 * sum(widths), 0.17 * sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=10)
    drawn = axes.table(
        cellText=cells.to_numpy().tolist(),
        colLabels=heads,
        loc="center",
        cellLoc="left",
        colWidths=[width / sum(widths) for width in widths],
        edges="horizontal",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    for (row, _), cell in drawn.get_celld().items():
        cell.set_height(heights[row] / sum(heights))
        cell.set_linewidth(0.5)
    return figure


def _written(out: Path, text: str) -> None:
    with _writable(out):
        write_whole(out, text)


def _saved(out: Path, figure: Figure) -> None:
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    with _writable(out):
        figure.savefig(scratch, dpi=200, format="png")
        scratch.replace(out)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{out} cannot be written: {error}") from error
