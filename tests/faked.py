"""Results of sweeps that never ran, made from settings and the examples that each trial answers right."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from quantlab.evaluation.significance import accuracy_drop_ci95
from quantlab.results.table import Results

Settings = Mapping[str, str]


def crossed(**axes: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of the axes' values. An underscore in a name stands for a dot."""
    names = [name.replace("_", ".") for name in axes]
    return [dict(zip(names, values, strict=True)) for values in product(*axes.values())]


def faked(
    settings: Sequence[Settings],
    right: np.ndarray,
    failed: Collection[int] = (),
    block: str = "",
    references: Collection[int] = (),
    **metrics: float,
) -> Results:
    """Results of trials with these settings. ``right``: bool, (trials, examples); FP32 is right everywhere.

    ``failed`` and ``references`` (FP32 trials) are numbers of rows. ``metrics`` are further metrics of every
    trial that did not fail.
    """
    swept = tuple(dict.fromkeys(name for row in settings for name in row))
    rows = []
    for index, (row, answers) in enumerate(zip(settings, right.astype(bool), strict=True)):
        low, high = accuracy_drop_ci95(np.ones_like(answers), answers)
        scores = {
            "accuracy": answers.mean(),
            "accuracy_fp32": 1.0,
            "accuracy_drop": 1 - answers.mean(),
            "accuracy_drop_ci95_low": low,
            "accuracy_drop_ci95_high": high,
            "agreement_fp32": answers.mean(),
            "size_bytes": 1e6,
            "size_fp32_bytes": 4e6,
            **metrics,
        }
        lost = index in failed
        rows.append(
            {
                "number": index + 1,
                "block": block,
                "name": " ".join(row.values()),
                "status": "failed" if lost else "done",
                "key": f"{index:08x}",
                "reference": index in references and not lost,
                **{name: row.get(name, "") for name in swept},
                **{name: np.nan if lost else value for name, value in scores.items()},
                "alarms": "",
                "error": "OutOfMemoryError: too large\nline 2" if lost else "",
            }
        )
    correct = right.astype(float)
    correct[list(failed)] = np.nan
    return Results(table=pd.DataFrame(rows), primary="accuracy", swept=swept, title="Which?", correct=correct)


def changed(results: Results, **columns: list[object]) -> Results:
    """``results`` with columns of its table replaced or added."""
    return replace(results, table=results.table.assign(**columns))


def answers(
    accuracies: Sequence[float], examples: int = 400, noise: float = 0.1, seed: int = 0
) -> np.ndarray:
    """Which examples each trial answers right, bool, (trials, examples), for the given accuracies.

    Trials agree on which examples are hard, up to ``noise``.
    """
    random = np.random.default_rng(seed)
    hardness = random.random(examples) + noise * random.normal(size=(len(accuracies), examples))
    order = hardness.argsort(axis=1).argsort(axis=1)
    return order < np.round(np.array(accuracies) * examples)[:, None]
