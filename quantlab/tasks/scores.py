"""Scores: what a task's answers are worth, in which direction, and what a model loses against another.

A score reads values (N, C), one row an evaluated unit (a text, an image, a window of tokens), and labels
(N,). What the columns hold is the :class:`Kind` of the task.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import scipy
from scipy.special import logsumexp

Total = Callable[[np.ndarray, np.ndarray], float]
Right = Callable[[np.ndarray, np.ndarray], np.ndarray]
Parts = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Kind(StrEnum):
    """What a task asks of each unit, and so what the columns of its values hold."""

    CLASSES = "classes"  # logits, one column a class
    REGRESSION = "regression"  # one score
    WINDOWS = "windows"  # summed negative log-likelihood in nats, predicted tokens, words
    WORDS = "words"  # negative log-likelihood of the word in nats, 1 where all its tokens are the likeliest

    def columns(self, count: int) -> tuple[str, ...]:
        """The names of the columns of values that have ``count`` of them."""
        if self is Kind.WINDOWS:
            return "nll", "tokens", "words"
        return ("nll", "right") if self is Kind.WORDS else tuple(f"logit_{i}" for i in range(count))


class LossNames(NamedTuple):
    """What columns and metrics call 100 times a loss, the ends of its 95 % interval, and its one-sided 95 %
    upper bound."""

    value: str
    low: str
    high: str
    upper95: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number for all answers of a model, and how a loss is told from it."""

    name: str
    total: Total
    right_of: Right | None = None  # bool (N,): which units are right; None if the score is no share of them
    higher_is_better: bool = True
    # For a score that is the exponential of a ratio of sums over units: numerators and denominators, (N,)
    # each. Its differences are ratios.
    parts: Parts | None = None

    @property
    def relative(self) -> bool:
        """Whether differences are ratios."""
        return self.parts is not None

    def right(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Which units are right, bool (N,); None if the score is no share of right units."""
        return None if self.right_of is None else self.right_of(values, labels)

    def lost(self, value: float, reference: float) -> float:
        """What ``value`` loses against ``reference``, positive where it is worse: the difference, a fraction
        of 1, or for relative scores the ratio less 1."""
        worse, better = (reference, value) if self.higher_is_better else (value, reference)
        if self.relative:
            return worse / better - 1 if better else math.nan
        return worse - better

    @property
    def loss_unit(self) -> str:
        """The unit of 100 times a loss: points of 100, or % of the reference."""
        return "%" if self.relative else "points"

    @property
    def loss_names(self) -> LossNames:
        """``drop_points``, or of a relative score ``loss_percent``, and the names that go with it."""
        word, unit = ("loss", "percent") if self.relative else ("drop", "points")
        return LossNames(f"{word}_{unit}", f"{word}_ci95_low", f"{word}_ci95_high", f"{word}_upper95")


def loss_of(metrics: Mapping[str, object]) -> tuple[str, float, float, float]:
    """The primary score's name, the loss against FP32, and the ends of its 95 % interval.

    ``metrics`` are a result's: they hold ``{score}_drop`` or ``{score}_ratio``, with ``_ci95_low`` and
    ``_ci95_high``. The loss is positive where the trial is worse: the drop, or the ratio less 1. A missing
    number is NaN. Raises ValueError if there is neither name.
    """
    for suffix, shift in (("_drop", 0.0), ("_ratio", 1.0)):
        name = next((each.removesuffix(suffix) for each in metrics if each.endswith(suffix)), None)
        if name in SCORES:
            numbers = (metrics.get(f"{name}{suffix}{end}") for end in ("", "_ci95_low", "_ci95_high"))
            loss, low, high = (
                each - shift if isinstance(each, int | float) else math.nan for each in numbers
            )
            return name, loss, low, high
    raise ValueError(f"the metrics name no loss of a score: {', '.join(metrics) or 'there are none'}")


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of right answers."""
    return float(np.mean(logits.argmax(-1) == labels))


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 where there are two classes, as GLUE gives it for MRPC and QQP; of more classes, the mean
    over those that occur (macro F1). A class that occurs in neither answers nor labels has 0."""
    answers, classes = logits.argmax(-1), logits.shape[1]
    if classes == 2:
        return _f1_of(answers == 1, labels == 1)
    occurring = np.union1d(answers, labels)
    return float(np.mean([_f1_of(answers == each, labels == each) for each in occurring]))


def _right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    right: np.ndarray = logits.argmax(-1) == labels
    return right


def _f1_of(answers: np.ndarray, truth: np.ndarray) -> float:
    # Not by sklearn: its checks take 50 times as long as this.
    return float(2 * np.sum(answers & truth) / max(np.sum(answers) + np.sum(truth), 1))


def matthews_correlation(logits: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation of answers and labels, which for two classes is Pearson's; 0 where either is
    constant.

    Raises ValueError on another number of classes.
    """
    if logits.shape[1] != 2:
        raise ValueError(f"matthews_correlation is for two classes, got logits of {logits.shape[1]}")
    answers = logits.argmax(-1)
    constant = np.ptp(answers) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(np.corrcoef(answers, labels)[0, 1])


def pearson(logits: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation of scores (N, 1) and labels; 0 where either is constant, as Matthews' is."""
    return _correlation(scipy.stats.pearsonr, logits, labels)


def spearmanr(logits: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation of scores (N, 1) and labels; 0 where either is constant."""
    return _correlation(scipy.stats.spearmanr, logits, labels)


def _correlation(
    statistic: Callable[..., tuple[float, float]], logits: np.ndarray, labels: np.ndarray
) -> float:
    scores = logits[:, 0].astype(np.float64)
    constant = np.ptp(scores) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(statistic(scores, labels.astype(np.float64))[0])


def last_word_accuracy(values: np.ndarray, labels: np.ndarray) -> float:
    """The share of last words all of whose tokens are the likeliest, of (nll, right)."""
    return float(np.mean(values[:, 1]))


def _right_word(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    right: np.ndarray = values[:, 1] > 0
    return right


def _perplexity(name: str, parts: Parts) -> Score:
    """exp(sum of numerators / sum of denominators): infinite where that exceeds a float."""

    def total(values: np.ndarray, labels: np.ndarray) -> float:
        above, below = parts(values)
        with np.errstate(over="ignore"):
            return float(np.exp(above.sum() / below.sum()))

    return Score(name=name, total=total, parts=parts, higher_is_better=False)


def _by_name(*scores: Score) -> dict[str, Score]:
    return {score.name: score for score in scores}


CLASSIFICATION = _by_name(
    Score(name="accuracy", total=accuracy, right_of=_right),
    Score(name="f1", total=f1),
    Score(name="matthews_correlation", total=matthews_correlation),
)
REGRESSION = _by_name(Score(name="pearson", total=pearson), Score(name="spearmanr", total=spearmanr))
WINDOWS = _by_name(  # of (nll, tokens, words): per predicted token, and per word as lm-eval counts it
    _perplexity("perplexity", lambda values: (values[:, 0], values[:, 1])),
    _perplexity("word_perplexity", lambda values: (values[:, 0], values[:, 2])),
)
WORDS = _by_name(
    Score(name="last_word_accuracy", total=last_word_accuracy, right_of=_right_word),
    _perplexity("last_word_perplexity", lambda values: (values[:, 0], np.ones(len(values)))),
)
SCORES: dict[str, Score] = CLASSIFICATION | REGRESSION | WINDOWS | WORDS
OF_KIND = {
    Kind.CLASSES: CLASSIFICATION,
    Kind.REGRESSION: REGRESSION,
    Kind.WINDOWS: WINDOWS,
    Kind.WORDS: WORDS,
}


def compute(names: Iterable[str], values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named scores. Raises ValueError on NaN or infinite values: an argmax of them would pass for an
    answer."""
    _require_finite(values)
    return {name: SCORES[name].total(values, labels) for name in names}


def mean_loss(kind: Kind, values: np.ndarray, labels: np.ndarray) -> float:
    """What training would make less: the mean cross entropy in nats (of an example, a token, a last word), or
    the mean squared error of a regression. Raises ValueError on NaN or infinity."""
    _require_finite(values)
    wide = values.astype(np.float64)
    match kind:
        case Kind.CLASSES:
            return float(np.mean(logsumexp(wide, axis=-1) - wide[np.arange(len(labels)), labels]))
        case Kind.REGRESSION:
            return float(np.mean((wide[:, 0] - labels) ** 2))
        case Kind.WINDOWS:
            return float(wide[:, 0].sum() / wide[:, 1].sum())
        case Kind.WORDS:
            return float(wide[:, 0].mean())


def _require_finite(values: np.ndarray) -> None:
    bad = ~np.isfinite(values).all(axis=-1)
    if bad.any():
        raise ValueError(f"the logits of {bad.sum()} of {len(bad)} examples are NaN or infinite")
