"""The best trial of a sweep, and what it is worth on rows that did not choose it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantlab.evaluation.answering import Evaluation
from quantlab.reporting.recommendation import SAME_SIZE
from quantlab.results.answers import SavedAnswers, measuring_rows
from quantlab.results.scale import scale_of
from quantlab.results.table import Results, loss_text
from quantlab.tasks.scores import SCORES


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best trial of a sweep, measured on rows that did not choose it where there are such rows."""

    name: str
    key: str
    metric: str
    value: float  # of the metric
    loss: tuple[float, float, float]  # against FP32 and its 95 % interval, fractions
    rows: str  # which rows chose and measured it

    def __str__(self) -> str:
        scale = scale_of(self.metric)
        lost, known = loss_text(scale, *self.loss), not math.isnan(self.loss[0])
        told = f"drop {lost} points, " if scale.percent else f"{lost} times FP32's, "
        return f"{self.name}: {self.metric} {self.value:.4f}, {told if known else ''}{self.rows}"


def best_of(
    results: Results, answers: Mapping[str, SavedAnswers | None], evaluation: Evaluation
) -> Best | None:
    """The trial with the best primary metric on the rows that choose, of equal ones the smallest.

    Of trials that stop when their loss is decided it is the smallest that keeps within the limit, of equal
    ones that which loses least: they answered different rows, so that their scores choose none.
    ``answers`` are those of finished trials by key. FP32 is a candidate only where nothing else finished.
    None without candidates.
    """
    if results.metric("rows_answered").notna().any():
        return _smallest_that_keeps(results)
    primary, quantized = results.primary, ~results.failed & ~results.reference
    among = results.where(quantized if quantized.any() else ~results.failed)
    if among.table.empty:
        return None
    keys = among.table["key"]
    given = {key: answers.get(key) for key in keys}
    held_out = measuring_rows(list(given.values()), evaluation.holdout, evaluation.seed)
    scores = among.metric(primary)
    if held_out is not None:
        scores = keys.map(
            {key: found.where(~held_out).value(primary) for key, found in given.items() if found}
        )
    ranked = among.table.assign(score=scores).sort_values(
        ["score", "size_bytes"], ascending=[not SCORES[primary].higher_is_better, True]
    )
    row, lost = ranked.iloc[0], among.losses().loc[ranked.index].iloc[0]
    found = given[row["key"]]
    value, loss, low, high = row[primary], lost["loss"], lost["low"], lost["high"]
    if found is not None and held_out is not None:
        measured = found.where(held_out)
        value, difference = measured.value(primary), measured.against_fp32(primary)
        loss, low, high = -difference.difference, -difference.high, -difference.low
    return Best(
        name=str(row["name"]),
        key=str(row["key"]),
        metric=primary,
        value=float(value),
        loss=(float(loss), float(low), float(high)),
        rows=_chosen_and_measured(primary, held_out, len(found.labels) if found else 0, len(given)),
    )


def best_in_words(best: Best | None, results: Results, evaluation: Evaluation) -> str:
    """The best trial, or that none keeps within the limit; "" where there was nothing to choose."""
    if best is not None:
        return str(best)
    no_verdict = results.metric("rows_answered").isna().all()
    if evaluation.max_drop is None or no_verdict:
        return ""
    return f"no trial keeps within {results.scale.limit(evaluation.max_drop)}"


def _smallest_that_keeps(results: Results) -> Best | None:
    kept = results.where(results.metric("keeps") == 1)
    if kept.table.empty:
        return None
    losses = kept.losses()
    small = kept.table["size_bytes"] <= SAME_SIZE * kept.table["size_bytes"].min()
    first = losses["loss"][small].idxmin()
    row, lost = kept.table.loc[first], losses.loc[first]
    answered, selected = row["rows_answered"], row["rows_selected"]
    return Best(
        name=str(row["name"]),
        key=str(row["key"]),
        metric=results.primary,
        value=float(row[results.primary]),
        loss=(float(lost["loss"]), float(lost["low"]), float(lost["high"])),
        rows=f"the smallest of {len(kept.table)} trials that keep, decided by {answered:,.0f} of "
        f"{selected:,.0f} rows",
    )


def _chosen_and_measured(primary: str, held_out: np.ndarray | None, rows: int, candidates: int) -> str:
    """Over what a trial was chosen, and on which rows it was measured; ``rows`` is 0 where their number is
    not known."""
    known = f"{rows:,} rows" if rows else "rows"
    if candidates < 2:
        return f"the only trial to choose, measured on {known}"
    least = "ratio" if SCORES[primary].relative else "drop"
    chosen = f"lowest {least} among {candidates} trials"
    if held_out is None:
        return f"{chosen}, measured on the {known} that chose it, which flatters it"
    measuring = int(held_out.sum())
    return f"{chosen} on {rows - measuring:,} rows, measured on the other {measuring:,}"
