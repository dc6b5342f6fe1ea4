"""Means over units that may belong together, as windows of one document do.

Source: Cochran 1977: Sampling Techniques, 3rd edition, section 2.11: the ratio of two sums.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy

from quantlab.tasks.scores import SCORES


@dataclass(frozen=True, kw_only=True)
class ClusteredMean:
    """A mean over clusters, and how sure it is."""

    centre: float
    error: float  # standard error; NaN with one cluster
    clusters: int  # equal to the units where each stands alone

    @property
    def t95(self) -> float:
        """Half the width of the 95 % interval in standard errors: Student's t."""
        return t_of(0.95, self.clusters)

    @property
    def p(self) -> float:
        """Two-sided, of a mean of zero."""
        if not self.error:
            return float(self.centre == 0)
        return float(2 * scipy.stats.t.sf(abs(self.centre) / self.error, self.clusters - 1))


def t_of(level: float, clusters: int) -> float:
    """Half the width of Student's interval of this level in standard errors; NaN with one cluster."""
    return float(scipy.stats.t.isf((1 - level) / 2, clusters - 1)) if clusters > 1 else math.nan


def ratio_of_sums(above: np.ndarray, below: np.ndarray, clusters: np.ndarray | None) -> ClusteredMean:
    """sum(above) / sum(below) over units (N,), with the standard error of the ratio estimator.

    With d and t the sums of a cluster, n clusters and r the ratio, the error is
    sqrt(n / (n - 1) sum (d - r t)^2) / sum t.
    """
    numbers = np.arange(len(above)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    d, t = (np.bincount(numbers, weights=each.astype(np.float64)) for each in (above, below))
    n, ratio = len(d), float(d.sum() / t.sum())
    residuals = float(np.sum((d - ratio * t) ** 2))
    error = math.sqrt(n / (n - 1) * residuals) / float(t.sum()) if n > 1 else math.nan
    return ClusteredMean(centre=ratio, error=error, clusters=n)


def log_ratio(
    score: str, reference: np.ndarray, values: np.ndarray, clusters: np.ndarray | None
) -> ClusteredMean:
    """The logarithm of a relative score's ratio, ``values`` over ``reference``, both (N, C), paired by units.

    Raises ValueError where the score is not relative.
    """
    parts = SCORES[score].parts
    if parts is None:
        raise ValueError(f"differences of {score} are no ratios")
    (above, below), (reference_above, _) = parts(values), parts(reference)
    return ratio_of_sums(above - reference_above, below, clusters)
