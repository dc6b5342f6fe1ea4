"""A report as a file: the page, or its table for a paper."""

from pathlib import Path

from quantlab.cache import write_whole
from quantlab.reporting.analysis import Analysis
from quantlab.reporting.comparing import rows
from quantlab.reporting.content import content
from quantlab.reporting.page import render
from quantlab.reporting.reading import Study
from quantlab.reporting.table import columns, frame
from quantlab.sweeping.results import latex, markdown

FORMATS = ("html", "md", "tex", "png")


def write(study: Study, analysis: Analysis | None, out: Path, format: str, max_drop: float) -> None:
    """Writes a study's report, whole. Raises OSError where that cannot be."""
    if format == "html":
        _written(out, render(content(study, analysis, max_drop)))
        return
    table = frame(columns(study, rows(study)))
    if format == "png":
        raise NotImplementedError
    _written(out, markdown(table) if format == "md" else latex(table))


def _written(out: Path, text: str) -> None:
    try:
        write_whole(out, text)
    except OSError as error:
        raise OSError(f"{out} cannot be written: {error}") from error
