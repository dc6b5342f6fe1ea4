"""The matrix of all trials against each other, as the page's template takes it."""

from typing import Any

from quantlab.evaluation.significance import verdict
from quantlab.reporting.comparing import PairMatrix
from quantlab.reporting.trial_table import interval, number, p_text
from quantlab.results.scale import Scale


def matrix_content(scale: Scale, pairs: PairMatrix) -> dict[str, Any]:
    """Its head, names, cells and caption. A cell has text, kind (a style) and title."""
    size, against = len(pairs.rows), "less" if scale.percent else "over"
    spec = "+z.1f" if scale.percent else scale.change_format
    cells: list[list[Any]] = [[None] * size for _ in range(size)]
    for (i, j), comparison in pairs.comparisons.items():
        lost = [-comparison.difference, -comparison.low, -comparison.high]
        for row, column, losses in ((i, j, lost), (j, i, list(map(scale.mirrored, lost)))):
            difference, *ends = map(scale.change, losses)
            low, high = sorted(ends)
            same = verdict(comparison)
            words = same if row == i else {"better": "worse", "worse": "better"}.get(same, same)
            mark = {"better": "▲ ", "worse": "▼ "}.get(words, "")
            title = f"{pairs.rows[row].trial.name} {against} {pairs.rows[column].trial.name}: {words}; "
            title += f"95 % interval {interval(low, high, scale.change_format)}; p {p_text(comparison.p)}"
            cells[row][column] = {
                "text": f"{mark}{number(difference, spec)}",
                "kind": verdict_style(words),
                "title": title,
            }
    caption = (
        "Each trial against each other on the same examples: ▲ better, ▼ worse, at 5 % after a correction "
    )
    caption += "for all pairs here; without a mark, the examples do not tell the two apart."
    if pairs.left_out:
        caption += f" These are the {size} with the {scale.best} {scale.words}; "
        caption += f"{pairs.left_out} others are left out."
    head = f"row {against} column, {'in points' if scale.percent else 'as a ratio'}"
    names = [row.trial.name for row in pairs.rows]
    return {"head": head, "names": names, "cells": cells, "caption": caption}


def verdict_style(words: str) -> str:
    """The CSS class of a verdict: better, worse, failed or unclear."""
    if words.startswith("loses"):
        return "worse"
    return next((name for name in ("better", "worse", "failed") if words.startswith(name)), "unclear")
