"""The tables of a cube of trials: ways from one setting to another where every mixture of the two was
tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from quantlab.config.checks import one_of
from quantlab.results.scale import ENDS, Scale
from quantlab.results.table import Results, drop_text, markdown, number_texts, setting, short_names
from quantlab.sweeping import effects

GAIN = [f"gain{end}" for end in ENDS]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cube:
    """Trials of every subset of some changes: bit i of a trial's index says whether change i is made.

    Tables have a row a change: ``path``, ``step`` from 1, ``change``, ``gain`` with its interval
    (:meth:`Scale.effects`), and ``reached``, the score as it is shown once the change is made.
    """

    scores: np.ndarray  # (2 ** changes, examples), as Results.scores gives them
    changes: tuple[str, ...]
    max_drop: float  # 100 times the loss that the end of the shortest path may have against all changes
    scale: Scale  # of the score: the tables are in its units

    def full(self) -> pd.DataFrame:
        """All changes, each next one that which gains most."""
        return self._path("full", effects.greedy_order(self.scores.mean(axis=1), range(len(self.changes))))

    def shortest(self) -> pd.DataFrame:
        """The fewest changes that are as good as all of them, in the sense of :func:`effects.shortest`."""
        return self._path("shortest", effects.shortest(self.scores, self.scale.tolerance(self.max_drop)))

    def shapley(self) -> pd.DataFrame:
        """Each change's gain averaged over all orders of making them, the largest first; nothing is
        reached."""
        values = effects.shapley(self.scores)
        order = np.argsort(-values.mean(axis=1), kind="stable")
        return self._table("order-free", order.tolist(), values[order])

    def report(self) -> str:
        """The three tables as Markdown, under one sentence on the ends and one on the shortest path."""
        shortest, scale = self.shortest(), self.scale
        made = sum(1 << self.changes.index(change) for change in shortest["change"])
        start, reached, end = (
            scale.with_unit(mean / scale.factor)
            for mean in scale.level(self.scores[[0, made, -1]].mean(axis=1)).tolist()
        )
        gain, behind = (
            f"{drop_text(*scale.effects(effects.mean_ci95(self.scores[-1] - self.scores[index])))} "
            f"{scale.effect_unit}"
            for index in (0, made)
        )
        steps = pd.concat([shortest, self.full(), self.shapley()])
        kind = "gain" if scale.percent else "change"
        shown = pd.DataFrame(
            {
                "path": steps["path"],
                "step": steps["step"].astype(str),
                "change": steps["change"],
                f"{kind} in {scale.effect_unit} (95 % interval)": [
                    drop_text(*gain) for gain in steps[GAIN].to_numpy()
                ],
                "reached (%)" if scale.percent else "reached": number_texts(steps["reached"], ".2f"),
            }
        )
        n, than = self.scores.shape[1], "less" if scale.percent else f"more {scale.words}"
        within = f"at most {scale.limit(self.max_drop)} {than} than all changes"
        path = f"The shortest path to {within} makes {len(shortest)} and reaches {reached}"
        if len(shortest) < len(self.changes):
            path += f"; the rest adds {behind}."
        else:
            path += f": {n:,} examples do not show of fewer changes that they reach it."
        return f"All {len(self.changes)} changes lead from {start} to {end}: {gain}.\n{path}\n\n" + markdown(
            shown
        )

    def _path(self, path: str, order: Sequence[int]) -> pd.DataFrame:
        gains = effects.gains(self.scores, order)
        reached = self.scale.level(self.scores[0].mean() + gains.mean(axis=1).cumsum())
        return self._table(path, order, gains).assign(reached=reached)

    def _table(self, path: str, order: Sequence[int], gains: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "path": path,
                "step": np.arange(1, len(order) + 1),
                "change": [self.changes[change] for change in order],
                **dict(zip(GAIN, self.scale.effects(effects.mean_ci95(gains)), strict=True)),
                "reached": np.nan,
            }
        )


def cube_of(block: Results, start: Mapping[str, str], end: Mapping[str, str], max_drop: float) -> Cube:
    """The block's trials whose settings are each as in ``start`` or as in ``end``.

    Raises ValueError where an override or a value does not occur, a trial failed, or the trials are not one
    for each subset of the changes.
    """
    for name in start:
        one_of("start and end", name, block.swept)
        for value in (start[name], end[name]):
            one_of(name, value, block.table[name].unique())
    rows = block.where(
        block.table[list(start)].isin({name: [start[name], end[name]] for name in start}).all(axis=1)
    )
    rows.require_finished()
    changed = [name for name in start if start[name] != end[name]]
    made = np.column_stack([rows.table[name] == end[name] for name in changed]) @ (
        1 << np.arange(len(changed))
    )
    if not np.array_equal(np.sort(made), np.arange(1 << len(changed))):
        raise ValueError(
            f"a path over {', '.join(changed)} needs one trial for each of the {1 << len(changed)} mixtures "
            f"of start and end; the block has {len(np.unique(made))} of them in {len(made)} trials"
        )
    short = short_names(changed)
    changes = tuple(setting(short[name], end[name]) for name in changed)
    return Cube(scores=rows.scores()[np.argsort(made)], changes=changes, max_drop=max_drop, scale=block.scale)
