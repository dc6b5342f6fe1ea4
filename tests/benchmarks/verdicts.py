"""How many rows a verdict takes (`evaluation.until=decided`), and how many verdicts are wrong, by simulation.

python tests/benchmarks/verdicts.py

Rows of a split of 5,463 pairs differ from FP32's answers by chance: a share ``differ`` of them, so that the
share ``drop`` is lost in all. The first table has the mean of the rows taken for limits of 0.5, 1 and 2
points. The second has the share of verdicts before the end for models that lose just as much as the limit,
all of them wrong, and that share for who looks as often with an interval for one look. Takes a minute.
"""

import math
from collections.abc import Iterator

import numpy as np

from quantlab.evaluation.sequential import log_capital
from quantlab.evaluation.verdicts import SequentialTest

ROWS, RUNS = 5463, 100
BEYOND = math.log(2 / 0.05)  # the capital at which an interval of 95 % leaves a mean out
LIMITS = (0.005, 0.01, 0.02)
MODELS = ((0.02, 0.0), (0.05, 0.0), (0.05, 0.01), (0.05, 0.02), (0.1, 0.05), (0.2, 0.1), (0.45, 0.3))
AT_LIMIT = ((0.02, 0.005), (0.05, 0.01), (0.1, 0.02))


def looks() -> np.ndarray:
    """Rows answered at each look before the end."""
    nothing, labels = np.zeros((ROWS, 2)), np.zeros(ROWS, np.int64)
    test = SequentialTest(
        metric="accuracy", limit=0.0, labels=labels, reference=nothing, clusters=None, seed=0
    )
    sizes: np.ndarray = np.cumsum([len(chunk) for chunk in test.chunks()])[:-1]
    return sizes


def orders(differ: float, drop: float) -> Iterator[np.ndarray]:
    """What rows lose, 1, 0 or -1, in the order in which they are answered."""
    rng, values = np.random.default_rng(0), np.zeros(ROWS)
    lost, won = round(ROWS * (differ + drop) / 2), round(ROWS * (differ - drop) / 2)
    values[:lost], values[lost : lost + won] = 1, -1
    for _ in range(RUNS):
        yield rng.permutation(values)


def rows_taken(values: np.ndarray, limit: float) -> int:
    """Rows that are answered until the verdict."""
    for n in looks():
        if max(log_capital(sign * values[:n], ROWS, sign * limit) for sign in (1, -1)) >= BEYOND:
            return int(n)
    return ROWS


def naive(values: np.ndarray) -> bool:
    """Whether the normal interval for one look leaves the true mean out at any look."""
    means = np.cumsum(values)[looks() - 1] / looks()
    errors = values.std() * np.sqrt((1 - looks() / ROWS) / looks())
    return bool((np.abs(means - values.mean()) > 1.96 * errors).any())


def main() -> None:
    """Prints both tables."""
    print("differ  drop   rows taken at a limit of", *(f"{limit:.1%}" for limit in LIMITS))
    for differ, drop in MODELS:
        taken = [np.mean([rows_taken(each, limit) for each in orders(differ, drop)]) for limit in LIMITS]
        print(f"{differ:6.0%}{drop:6.0%}", *(f"{rows:8,.0f}" for rows in taken))
    print("differ  drop = limit   wrong verdicts   wrong with intervals for one look")
    for differ, drop in AT_LIMIT:
        wrong = np.mean([rows_taken(each, each.mean()) < ROWS for each in orders(differ, drop)])
        print(
            f"{differ:6.0%}{drop:15.1%}{wrong:17.1%}{np.mean(list(map(naive, orders(differ, drop)))):36.1%}"
        )


if __name__ == "__main__":
    main()
