"""The tables of a balanced full factorial: what each level of a factor does, and each pair of levels
together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from quantlab.config.checks import one_of
from quantlab.results.scale import ENDS, Scale
from quantlab.results.table import Results, drop_text, markdown, number_texts, ordered, short_names
from quantlab.sweeping import effects

INTERVAL = [f"effect{end}" for end in ENDS]
PAIR = ["factor_a", "factor_b", "variance_share", "level_a", "level_b", *INTERVAL]


@dataclass(frozen=True, kw_only=True, eq=False)
class Factorial:
    """Trials of every combination of the factors' levels, all combinations equally often.

    In the tables, ``mean`` is the score as it is shown, ``effect`` its change (:meth:`Scale.effects`).
    """

    scores: np.ndarray  # (trials, examples), as Results.scores gives them
    codes: np.ndarray  # (trials, factors): numbers of levels
    levels: dict[str, list[str]]  # by factor, in the order of the columns of codes
    scale: Scale  # of the score: the tables are in its units

    def shares(self) -> dict[tuple[str, ...], float]:
        """Shares of the variance among trials: of each factor, of each pair, and under ``()`` of the rest."""
        names, shares = list(self.levels), effects.variance_shares(self.scores.mean(axis=1), self.codes)
        return {tuple(names[factor] for factor in factors): share for factors, share in shares.items()}

    def main_effects(self) -> pd.DataFrame:
        """A row a level: its mean, and how far that is from the mean of all, with the 95 % interval of the
        distance."""
        return pd.concat([self._levels(factor) for factor in self.levels], ignore_index=True)

    def interactions(self) -> pd.DataFrame:
        """A row a pair, by its share of the variance: the cell that is furthest from the sum of its main
        effects."""
        largest = [self._largest(*pair) for pair in combinations(self.levels, 2)]
        return pd.DataFrame(largest, columns=PAIR).sort_values(
            "variance_share", ascending=False, kind="stable", ignore_index=True
        )

    def cells(self, a: str, b: str) -> pd.DataFrame:
        """Means as the score is shown, a's levels down, b's across."""
        means = self.scale.level(
            effects.cell_means(self.scores, self._codes(a), self._codes(b)).mean(axis=-1)
        )
        table = pd.DataFrame(means, index=self.levels[a], columns=self.levels[b])
        return table.rename_axis(index=short_names(self.levels)[a], columns=short_names(self.levels)[b])

    def report(self) -> str:
        """Markdown: where the variance among trials comes from, the largest share first, and every level's
        effect."""
        shares, levels, short = self.shares(), self.main_effects(), short_names(self.levels)
        ranges, unit = levels.groupby("factor")["range"].first(), self.scale.effect_unit
        by_share = sorted(shares, key=lambda names: (not names, -shares[names]))
        sources = {
            "source": [" × ".join(short[name] for name in names) or "higher orders" for names in by_share],
            "share of variance (%)": number_texts(
                pd.Series([100 * shares[names] for names in by_share]), ".1f"
            ),
            f"range of means ({unit})": [
                f"{ranges[names[0]]:.2f}" if len(names) == 1 else "" for names in by_share
            ],
        }
        rows = {
            "factor": levels["factor"].map(short),
            "level": levels["level"],
            "mean (%)" if self.scale.percent else "geometric mean": number_texts(levels["mean"], ".2f"),
            f"effect in {unit} (95 % interval)": [drop_text(*row) for row in levels[INTERVAL].to_numpy()],
        }
        return markdown(pd.DataFrame(sources)) + "\n" + markdown(pd.DataFrame(rows))

    def _levels(self, factor: str) -> pd.DataFrame:
        differences = effects.mean_ci95(effects.main_effects(self.scores, self._codes(factor)))
        ends = dict(zip(INTERVAL, self.scale.effects(differences), strict=True))
        widest = np.repeat(-np.ptp(differences[0]), 3)
        return pd.DataFrame(
            {
                "factor": factor,
                "level": self.levels[factor],
                "mean": self.scale.level(self.scores.mean() + differences[0]),
                **ends,
                "range": abs(self.scale.effects(widest)[0]),
                "variance_share": self.shares()[factor,],
            }
        )

    def _largest(self, a: str, b: str) -> dict[str, str | float]:
        cells = effects.mean_ci95(effects.interactions(self.scores, self._codes(a), self._codes(b)))
        row, column = np.unravel_index(np.abs(cells[0]).argmax(), cells[0].shape)
        return {
            "factor_a": a,
            "factor_b": b,
            "variance_share": self.shares()[a, b],
            "level_a": self.levels[a][row],
            "level_b": self.levels[b][column],
            **dict(zip(INTERVAL, self.scale.effects(cells[:, row, column]).tolist(), strict=True)),
        }

    def _codes(self, factor: str) -> np.ndarray:
        return np.asarray(self.codes[:, list(self.levels).index(factor)])


def factorial_of(block: Results, factors: Sequence[str]) -> Factorial:
    """The block's trials. Raises ValueError where some failed, or not all levels meet equally often."""
    for name in factors:
        one_of("factors", name, block.swept)
    block.require_finished()
    levels = {name: ordered(block.table[name]) for name in factors}
    codes = np.column_stack([block.table[name].map(levels[name].index) for name in factors])
    if min(map(len, levels.values())) < 2 or not effects.is_balanced(codes):
        counts = ", ".join(f"{name} ({len(values)} levels)" for name, values in levels.items())
        raise ValueError(
            "a full factorial has two or more levels a factor and each combination of them equally often; "
            f"these are {len(codes)} trials of {counts}"
        )
    shown = {name: [level or "default" for level in values] for name, values in levels.items()}
    return Factorial(scores=block.scores(), codes=codes, levels=shown, scale=block.scale)
