"""Hypothesis strategies and settings for tests of tensor math: FP32 arrays at every scale."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from quantlab.quant.sketch import Sketch

# Draws the same examples every time and has no time limit, so that a slow machine is no failure.
properties = settings(deadline=None, derandomize=True, max_examples=60, database=None)

LARGEST = float(np.float32(1e38))  # with larger numbers the width of a range overflows FP32


def floats(largest: float = LARGEST) -> st.SearchStrategy[float]:
    """Finite FP32 numbers of magnitude up to ``largest``, with subnormals and both zeros."""
    largest = float(np.float32(largest))
    return st.floats(-largest, largest, width=32, allow_nan=False)


def arrays(least: int = 1, most: int = 40, largest: float = LARGEST) -> st.SearchStrategy[Tensor]:
    """FP32 vectors of ``least`` to ``most`` elements."""
    shape = st.integers(least, most)
    return hnp.arrays(np.float32, shape, elements=floats(largest)).map(torch.from_numpy)


def matrices(rows: int = 8, columns: int = 12, largest: float = LARGEST) -> st.SearchStrategy[Tensor]:
    """FP32 matrices, (elements, channels), from 1 x 1 to ``rows`` x ``columns``."""
    shape = st.tuples(st.integers(1, rows), st.integers(1, columns))
    return hnp.arrays(np.float32, shape, elements=floats(largest)).map(torch.from_numpy)


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    """FP32 numbers with outliers, from Student's t-distribution with three degrees of freedom."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, shape).astype(np.float32))


def sketched(*batches: Tensor) -> Sketch:
    """A sketch of the batches, each (elements, channels)."""
    sketch = Sketch(channels=batches[0].shape[1])
    for batch in batches:
        sketch.update(batch)
    return sketch
