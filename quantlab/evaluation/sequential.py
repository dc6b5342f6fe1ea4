"""Intervals of a finite population's mean that hold whenever one stops to look: confidence sequences.

Units of a population are drawn in a random order without replacement. After each of them there is an
interval. With a probability of at least 95 % all of these intervals hold the mean of the whole population, so
whoever stops at an interval of his choice is wrong in at most 5 % of all orders.

Sources, by short name:

- Waudby-Smith and Ramdas 2020: Confidence sequences for sampling without replacement, NeurIPS 33.
- Waudby-Smith and Ramdas 2024: Estimating means of bounded random variables by betting, JRSS-B 86; section 5
  has bets without replacement, appendix B mixtures of bets.
- Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024: Time-uniform central limit theory and asymptotic
  confidence sequences, Annals of Statistics 52; section 2.
- Ville 1939: Étude critique de la notion de collectif: a capital that starts at 1 and grows in a fair game
  reaches 1 / a with a probability of at most a.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp

from quantlab.evaluation.estimates import ALPHA

# Shares of the capital that are bet, side by side: large ones see large differences early, small ones small
# differences late. At most 0.5, so that no bet loses all.
BETS = 0.4 * 2.0 ** -np.arange(6)
STEPS = 40  # bisections of [-1, 1]: an end is exact to 2e-12
SHARPEST = 64  # units after which the asymptotic interval is narrowest


def bounded_interval(values: np.ndarray, population: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the interval of the mean of ``population`` units in [-1, 1], of which ``values`` (n,) are
    known.

    ``values`` are in the order in which they were drawn. Exact for every population. The ends are those means
    against which the bets of :func:`log_capital`, made after each unit, have never reached 2 / ``alpha``.
    """

    def lowest(known: np.ndarray) -> float:
        return _bisect(lambda mean: log_capital(known, population, mean) >= math.log(2 / alpha))

    return lowest(values), -lowest(-values)


def log_capital(values: np.ndarray, population: int, mean: float) -> float:
    """Returns the logarithm of the most that bets on more than ``mean`` ever had, where they began with 1.

    Each bet b multiplies its capital by 1 + b (x - m), where x is the next value and m what is expected of it
    if ``mean`` is that of the population: the mean of what is left. The capital is the mean over
    :data:`BETS`. It is infinite where ``mean`` is too low for the values, whatever the rest is.
    """
    known = np.concatenate([[0.0], np.cumsum(values)])
    left = population - np.arange(len(known))
    expected = (population * mean - known[left > 0]) / left[left > 0]
    if (expected < -1 - 1e-9).any():
        return math.inf
    growth = np.log1p(np.outer(BETS, values - np.minimum(expected[: len(values)], 1)))
    capital = logsumexp(np.cumsum(growth, axis=1), axis=0, b=1 / len(BETS))
    return max(0.0, float(capital.max(initial=0.0)))


def _bisect(rejected: Callable[[float], bool]) -> float:
    """Returns the lower end in [-1, 1] of what is not rejected: lower means are rejected sooner."""
    low, high = -1.0, 1.0
    if not rejected(low):
        return low
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def asymptotic_interval(values: np.ndarray, population: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the interval of the mean of ``population`` units, of which ``values`` (n,) are known.

    ``values`` are in the order in which they were drawn; n is at least 2, and less than ``population``. The
    level holds in the limit of many values, as that of Student's t does. With s their standard deviation and
    e the mean of what was left before each value, the sum of x - e is s sqrt(n) times a number that
    stays below the boundary of Waudby-Smith et al. 2024, theorem 2.2, at every n.
    """
    n = len(values)
    before, left = np.cumsum(values) - values, population - np.arange(n)
    weight = float(np.sum(population / left))  # of the mean in the sum of what is expected
    centre = float(np.sum(values + before / left)) / weight
    tuned = -2 * math.log(alpha)
    rho2 = (tuned + math.log(tuned + 1)) / SHARPEST
    boundary = math.sqrt(2 * (n * rho2 + 1) / rho2 * math.log(math.sqrt(n * rho2 + 1) / alpha))
    margin = float(np.std(values, ddof=1)) * boundary / weight
    return centre - margin, centre + margin
