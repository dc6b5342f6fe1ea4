"""How a score reads: its name, its numbers, and what was lost of it, each with its unit."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from quantlab.tasks.scores import SCORES, Score

ENDS = ("", "_ci95_low", "_ci95_high")  # of the names of a number and of the ends of its interval


@dataclass(frozen=True)
class Scale:
    """The words and units of a score.

    An absolute score (accuracy, a correlation) is shown in percent, and lost in points. A relative one (a
    perplexity) is shown as it is, and lost as a ratio to FP32's. A loss is a fraction, positive where it is
    worse: the drop, or the ratio less 1.
    """

    score: Score

    @property
    def words(self) -> str:
        """The score's name in words."""
        return self.score.name.replace("_", " ")

    @property
    def percent(self) -> bool:
        """Whether the score is shown in percent."""
        return not self.score.relative

    @property
    def factor(self) -> float:
        """What a score is multiplied by to be shown."""
        return 100.0 if self.percent else 1.0

    @property
    def axis(self) -> str:
        """Name and unit for an axis or a column: ``accuracy (%)``, ``perplexity``."""
        return f"{self.words} (%)" if self.percent else self.words

    @property
    def spacing(self) -> str:
        """The spacing of an axis of scores: of perplexities, equal ratios are equally far apart."""
        return "log" if self.score.relative else "linear"

    @property
    def unit(self) -> str:
        """What follows a shown number in a text: `` %`` or nothing."""
        return " %" if self.percent else ""

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.score.higher_is_better else -1

    @property
    def best(self) -> str:
        """``highest`` or ``lowest``, of the best value."""
        return "highest" if self.score.higher_is_better else "lowest"

    @property
    def change_title(self) -> str:
        """The title of a column of differences from FP32."""
        return "difference (points)" if self.percent else "ratio to FP32"

    @property
    def loss_unit(self) -> str:
        """The unit of 100 times a loss: ``points``, or ``%``."""
        return self.score.loss_unit

    @property
    def loss_title(self) -> str:
        """The title of a column of 100 times losses: ``drop (points)``, ``loss (%)``."""
        return f"{'loss' if self.score.relative else 'drop'} ({self.loss_unit})"

    def ends(self, fp32: float, low: float, high: float) -> tuple[float, float]:
        """The score's interval from the ends of the loss's, ``fp32`` being exact. No share is above 1."""
        if self.score.relative:
            return fp32 * (1 + low), fp32 * (1 + high)
        return fp32 - high, min(fp32 - low, 1.0)

    def change(self, loss: float) -> float:
        """A loss as a column of differences shows it: points gained, or the ratio to FP32."""
        return -100 * loss if self.percent else 1 + loss

    def mirrored(self, loss: float) -> float:
        """What the other of two loses, where one loses this against it."""
        return 1 / (1 + loss) - 1 if self.score.relative else -loss

    @property
    def change_format(self) -> str:
        """The format of :meth:`change`."""
        return "+z.2f" if self.percent else ".3f"

    def with_unit(self, value: float) -> str:
        """``87.50 %`` or ``34.55``."""
        return f"{self.factor * value:.2f}{self.unit}"

    def limit(self, limit: float) -> str:
        """A limit of 100 times a loss: ``0.5 points`` or ``0.5 %``."""
        return f"{limit:g} {self.loss_unit}"

    def lost(self, loss: float) -> str:
        """``loses 0.40 points of accuracy``, ``has 0.40 % more perplexity``; the opposite for gains."""
        size = f"{abs(100 * loss):.2f} {self.loss_unit}"
        if self.score.relative:
            return f"has {size} {'less' if loss < 0 else 'more'} {self.words}"
        return f"{'loses' if loss > 0 else 'gains' if loss < 0 else 'loses or gains'} {size} of {self.words}"

    @property
    def effect_unit(self) -> str:
        """The unit of :meth:`effects`: ``points``, or ``% of perplexity``."""
        return f"% of {self.words}" if self.score.relative else "points"

    def level(self, mean: np.ndarray | float) -> np.ndarray:
        """Means of ``Results.scores`` as the score is shown: in percent, or a perplexity's geometric mean."""
        return np.asarray(np.exp(np.negative(mean)) if self.score.relative else 100 * self.sign * mean)

    def effects(self, differences: np.ndarray) -> np.ndarray:
        """Differences of ``Results.scores``, each with the ends of its interval, (3, ...), as changes of the
        score: in points, or in % of a perplexity, which is negative where it is better."""
        if self.score.relative:
            mean, low, high = 100 * np.expm1(-differences)
        else:
            mean, low, high = 100 * self.sign * differences
        return np.stack([mean, np.minimum(low, high), np.maximum(low, high)])

    def after(self, shown: np.ndarray | float, change: np.ndarray | float) -> np.ndarray:
        """A shown score after a change by an effect."""
        return np.asarray(shown * (1 + change / 100) if self.score.relative else shown + change)

    def before(self, shown: np.ndarray | float, change: np.ndarray | float) -> np.ndarray:
        """A shown score before a change by an effect."""
        return np.asarray(shown / (1 + change / 100) if self.score.relative else shown - change)

    def tolerance(self, limit: float) -> float:
        """A limit of 100 times a loss as a difference of ``Results.scores``."""
        return math.log1p(limit / 100) if self.score.relative else limit / 100

    def named(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of effects with units in its columns' names: ``effect_points`` for ``effect``, ..."""
        unit = "percent" if self.score.relative else "points"
        names = {
            "mean": "mean_percent" if self.percent else "mean",
            "reached": "reached_percent" if self.percent else "reached",
            "range": f"range_{unit}",
            **{f"effect{end}": f"effect_{unit}{end}" for end in ENDS},
            **{f"gain{end}": f"{'gain' if self.percent else 'change'}_{unit}{end}" for end in ENDS},
        }
        return table.rename(columns=names)


def scale_of(name: str) -> Scale:
    """The scale of a score, by its name."""
    return Scale(SCORES[name])


def losses(scale: Scale, table: pd.DataFrame) -> pd.DataFrame:
    """Each row's ``loss`` with its interval ``low`` to ``high``, as fractions, from a table with a metric a
    column; NaN where a row has none."""
    kind, start = ("ratio", 1.0) if scale.score.relative else ("drop", 0.0)
    names = {"loss": kind, "low": f"{kind}_ci95_low", "high": f"{kind}_ci95_high"}
    columns = {
        part: table.get(f"{scale.score.name}_{name}", pd.Series(math.nan, index=table.index)).astype(float)
        for part, name in names.items()
    }
    return pd.DataFrame(columns, index=table.index) - start
