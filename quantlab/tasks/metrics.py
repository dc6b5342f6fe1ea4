"""GLUE's metrics, each a function of logits (N, C) and labels (N,)."""

from collections.abc import Callable, Iterable

import numpy as np
import scipy
from scipy.special import logsumexp

Metric = Callable[[np.ndarray, np.ndarray], float]


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


CLASSIFICATION: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
}
REGRESSION: dict[str, Metric] = {"pearson": pearson, "spearmanr": spearmanr}
METRICS: dict[str, Metric] = CLASSIFICATION | REGRESSION


def compute(names: Iterable[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named metrics. Raises ValueError on NaN or infinite logits: their argmax would pass for an
    answer."""
    _require_finite(logits)
    return {name: METRICS[name](logits, labels) for name in names}


def loss(logits: np.ndarray, labels: np.ndarray, regression: bool) -> float:
    """Mean cross entropy in nats, or the mean squared error of a regression. Raises ValueError on NaN or
    infinity."""
    _require_finite(logits)
    wide = logits.astype(np.float64)
    if regression:
        return float(np.mean((wide[:, 0] - labels) ** 2))
    return float(np.mean(logsumexp(wide, axis=-1) - wide[np.arange(len(labels)), labels]))


def _require_finite(logits: np.ndarray) -> None:
    bad = ~np.isfinite(logits).all(axis=-1)
    if bad.any():
        raise ValueError(f"the logits of {bad.sum()} of {len(bad)} examples are NaN or infinite")
