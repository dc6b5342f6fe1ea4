"""Reads an analysis of outliers, as ``python -m quantlab.outliers`` writes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from quantlab.results.reading import Study

SUMMARY = "summary.json"
FINGERPRINT = "checkpoint_fingerprint"


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """A finished analysis of outliers: its summary and its tables."""

    folder: Path
    summary: Mapping[str, Any]

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by file name; empty ones are left out."""
        read = {path.stem: pd.read_csv(path) for path in sorted(self.folder.glob("*.csv"))}
        return {name: table for name, table in read.items() if len(table)}

    def table(self, name: str) -> pd.DataFrame | None:
        """A table by name; None where it is missing or empty."""
        return self.tables.get(name)


def read_analysis(folder: Path) -> Analysis:
    """Reads the analysis in a folder. Raises ValueError where it holds no finished one."""
    path = folder / SUMMARY
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no finished analysis ({SUMMARY} is missing); make one: {COMMAND} ..."
        )
    return Analysis(folder=folder, summary=json.loads(path.read_text(encoding="utf-8")))


def analysis_of(study: Study, folder: Path | None) -> Analysis | None:
    """The analysis in ``folder``, or the newest of the trials' checkpoint beside them; None without one.

    Raises ValueError where ``folder`` holds no analysis, or one of another checkpoint.
    """
    own = study.finished[0].tags.get("reference_fingerprint")
    if folder is not None:
        analysis = read_analysis(folder)
        if (theirs := analysis.summary["tags"].get(FINGERPRINT)) != own:
            raise ValueError(
                f"the analysis {folder} is of another checkpoint: {FINGERPRINT} {theirs}, the trials' {own}"
            )
        return analysis
    if study.root is None:
        return None
    places = sorted(
        study.root.glob(f"outliers/*/{SUMMARY}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    analyses = (read_analysis(path.parent) for path in places)
    return next((analysis for analysis in analyses if analysis.summary["tags"].get(FINGERPRINT) == own), None)


COMMAND = "python -m quantlab.outliers"
