"""Alarms that no single trial shows: a setting that was swept and did nothing."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from quantlab.alarms import Alarm
from quantlab.results.table import Results, ordered, setting

NO_ANSWERS = (
    "profile.",
    "runtime",
    "engine",
)  # what they set decides speed, or answers that are not the trial's
DIGITS = 12  # of two losses that are the same


def flat_axes(results: Results) -> tuple[Alarm, ...]:
    """Swept settings along which no answer changes: they did not reach the model, or something else decides
    it all.

    Compared are trials that differ in this setting only; FP32 itself and what failed are left out.
    """
    quantized = results.where(~results.failed & ~results.reference)
    axes = [name for name in results.swept if not name.startswith(NO_ANSWERS)]
    return tuple(alarm for name in axes for alarm in _flat(quantized, name))


def _flat(results: Results, axis: str) -> Iterator[Alarm]:
    groups, losses = _groups(results, axis), results.metric("loss").to_numpy(np.float64)
    right = results.correct
    if groups and all(_same(None if right is None else right[rows], losses[rows]) for rows in groups):
        rows = results.table.iloc[np.sort(np.concatenate(groups))]
        levels = ", ".join(setting(axis, level) for level in ordered(rows[axis]))
        yield Alarm(
            "flat_axis", f"{levels}: the same answers in all {len(rows)} trials that differ only in this"
        )


def _groups(results: Results, axis: str) -> list[np.ndarray]:
    """Places of the rows that differ only in the axis, at least two of its levels each."""
    others = [name for name in results.swept if name != axis]
    keys = results.table[others].agg("\0".join, axis=1) if others else pd.Series("", results.table.index)
    levels = results.table[axis].to_numpy()
    groups = map(np.asarray, results.table.groupby(keys, sort=False).indices.values())
    return [rows for rows in groups if len(set(levels[rows])) > 1]


def _same(right: np.ndarray | None, losses: np.ndarray) -> bool:
    """Whether all rows answer every unit alike, right or wrong, or have one loss."""
    if right is not None and (right == right[0]).all():
        return True
    return bool(np.allclose(losses, losses[0], rtol=10.0**-DIGITS, atol=0))  # NaN equals nothing
