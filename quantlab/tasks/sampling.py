"""Draws rows and splits them in two: with a seed, and with every class in its share."""

from enum import IntEnum

import numpy as np

FEWEST = 100  # rows on either side of a split: with fewer, one standard error of an accuracy is over 3 points


class Purpose(IntEnum):
    """What an order is for. The orders of two purposes are independent, also with one seed."""

    DRAW = 0
    HOLD_OUT = 1
    SPLIT = 2
    ANSWER = 3


def shuffled_rows(labels: np.ndarray, seed: int, purpose: Purpose) -> np.ndarray:
    """All row numbers, (N,), in a random order every prefix of which holds the classes in their shares.

    Integer ``labels`` (N,) are classes; scores are no classes, and their rows are shuffled as one. The order
    depends on labels, seed and purpose alone: numpy promises PCG64's stream for all machines and versions.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, purpose])).random_raw(len(labels))
    strata = labels if labels.dtype.kind in "iu" else np.zeros(len(labels), np.int64)
    place = np.empty(len(labels))  # of a row within its class, from 0 to 1
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        place[rows[np.argsort(keys[rows])]] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((keys, place))


def drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` row numbers, or all where there are fewer, in the order of the file."""
    return np.sort(shuffled_rows(labels, seed, Purpose.DRAW)[:count])


def held_out(labels: np.ndarray, share: float, seed: int, clusters: np.ndarray | None = None) -> np.ndarray:
    """The rows, bool (N,), that choose nothing and measure what the other rows have chosen.

    Rows of one cluster, integers (N,), are on one side; the first stands for their class. Clusters are drawn
    until the share is reached. No row is held out where either side would have fewer than ``FEWEST`` rows.
    """
    numbers = np.arange(len(labels)) if clusters is None else clusters
    names, first, sizes = np.unique(numbers, return_index=True, return_counts=True)
    order = shuffled_rows(labels[first], seed, Purpose.HOLD_OUT)
    enough = int(np.searchsorted(np.cumsum(sizes[order]), round(share * len(labels))))
    mask = np.isin(numbers, names[order[: enough + 1]])
    return mask if share and min(mask.sum(), (~mask).sum()) >= FEWEST else np.zeros(len(labels), bool)


def evaluated(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The rows, bool (N,), of a file that become its evaluation split; the others train and calibrate.

    Rows of one group stay together (``groups``, integers (N,)); either split gets at least one group.
    ``share`` is of the groups. The first row of a group stands for its class.

    Raises ValueError if there is one group.
    """
    names, first = np.unique(groups, return_index=True)
    if len(names) < 2:
        raise ValueError(f"{len(labels)} rows with the same texts cannot be split in two")
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    return np.isin(groups, names[shuffled_rows(labels[first], seed, Purpose.SPLIT)[:count]])
