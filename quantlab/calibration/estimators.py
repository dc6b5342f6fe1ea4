"""Range estimators, one class each: the choices of ``calibration`` in a config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quantlab.config.checks import one_of, whole
from quantlab.quant import ranges
from quantlab.quant.grid import AffineGrid, Grid
from quantlab.quant.sketch import Sketch
from quantlab.tasks.batching import Batch, in_file_order
from quantlab.tasks.examples import Examples

if TYPE_CHECKING:
    from quantlab.calibration.probe import Probe
    from quantlab.plan.plan import QuantPlan


@dataclass(frozen=True, kw_only=True)
class Calibration(ABC):
    """Which rows calibrate, in which network, and (in the subclasses) how a range follows from a sketch.

    ``samples`` rows of the training split calibrate: the first in file order, or a draw with ``seed``.
    ``padding="included"`` pads every row to the task's full length and counts the padding, as in arXiv
    2603.04308. ``through`` names the network: ``fp32``, ``quantized_weights``, or ``quantized``, where all
    sites before the observed one are quantized too.
    """

    samples: int = 64
    batch_size: int = 8
    seed: int | None = None
    padding: str = "masked"
    through: str = "fp32"

    ranges_weights: ClassVar[bool] = False  # whether the estimator ranges weights too
    sees_tokens: ClassVar[bool] = False  # whether it asks sketches for the extremes of tokens

    def __post_init__(self) -> None:
        whole("calibration.samples", self.samples, 1)
        whole("calibration.batch_size", self.batch_size, 1)
        if self.seed is not None:
            whole("calibration.seed", self.seed, 0)
        one_of("calibration.padding", self.padding, ("masked", "included"))
        one_of("calibration.through", self.through, ("fp32", "quantized_weights", "quantized"))

    @property
    def observation_key(self) -> tuple[object, ...]:
        """The settings that decide what calibration sees in the FP32 network."""
        return self.samples, self.batch_size, self.seed, self.padding, self.sees_tokens

    @property
    def counts_padding(self) -> bool:
        """Whether padding tokens count."""
        return self.padding == "included"

    @abstractmethod
    def range(self, sketch: Sketch, grid: AffineGrid) -> ranges.Range:
        """``(lo, hi)`` for one tensor, from its sketch."""

    def grid(self, grid: Grid) -> Grid:
        """The grid that replaces ``grid`` under this estimator: the same one but for
        :class:`PublishedPercentile`."""
        return grid

    def clipped(self, probe: Probe, plan: QuantPlan) -> QuantPlan:
        """The plan with ranges of weights that what the weights read decides, before they are rounded; by
        default as it is."""
        return plan

    def rows(self, examples: Examples) -> Examples:
        """The rows that calibrate. Raises ValueError if there are fewer than ``samples``."""
        if len(examples) < self.samples:
            raise ValueError(
                f"calibration.samples is {self.samples}, but the training split has {len(examples)} rows"
            )
        if self.seed is None:
            return examples.head(self.samples)
        return examples.take(np.random.default_rng(self.seed).permutation(len(examples))[: self.samples])

    def batches(self, examples: Examples, processor: Any, max_length: int) -> list[Batch]:
        """The batches of the rows that calibrate. Raises ValueError if there are fewer than ``samples``."""
        rows = self.rows(examples).encode(processor, max_length)
        return in_file_order(rows, processor, self.batch_size, full_length=self.counts_padding)


@dataclass(frozen=True, kw_only=True)
class MinMax(Calibration):
    """The smallest and the largest value."""

    def range(self, sketch: Sketch, grid: AffineGrid) -> ranges.Range:
        return ranges.minmax(sketch)


@dataclass(frozen=True, kw_only=True)
class RunningMinMax(Calibration):
    """Exponential moving average of the batches' extremes (Bondarenko et al. 2021, section 2)."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            isinstance(self.momentum, bool)
            or not isinstance(self.momentum, int | float)
            or not 0 <= self.momentum < 1
        ):
            raise ValueError(f"calibration.momentum must be in [0, 1), got {self.momentum!r}")

    def range(self, sketch: Sketch, grid: AffineGrid) -> ranges.Range:
        return ranges.running_minmax(sketch, self.momentum)


@dataclass(frozen=True, kw_only=True)
class Percentile(Calibration):
    """Two-sided percentile clipping."""

    percentile: float = 99.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_percentile(self.percentile)

    def range(self, sketch: Sketch, grid: AffineGrid) -> ranges.Range:
        return ranges.percentile(sketch, self.percentile, grid.symmetric)


@dataclass(frozen=True, kw_only=True)
class TokenPercentile(Calibration):
    """Percentiles over tokens of each token's smallest and largest channel: few tokens are clipped, however
    many channels of a token are large.

    The candidates of Outlier Suppression's token-wise clipping (Wei et al. 2022, arXiv 2209.13325, section
    4.2), which then picks one of them by the output's error. In attention a pair of tokens counts as one.
    """

    percentile: float = 99.0

    sees_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_percentile(self.percentile)

    def range(self, sketch: Sketch, grid: AffineGrid) -> ranges.Range:
        return sketch.token_percentile(self.percentile)


@dataclass(frozen=True, kw_only=True)
class Mse(Calibration):
    """The range with the least squared quantization error."""

    def range(self, sketch: Sketch, grid: AffineGrid) -> ranges.Range:
        return ranges.mse(sketch, grid)


@dataclass(frozen=True, kw_only=True)
class PublishedPercentile(Calibration):
    """The one-sided estimator of arXiv 2603.04308, only for reproducing its percentile rows.

    The paper's code uses it for weights as well as activations. A range that starts at zero makes its
    symmetric quantizer unsigned: all levels lie between zero and the maximum, and negative numbers are cut
    off.
    """

    percentile: float = 99.9

    ranges_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_percentile(self.percentile)

    def grid(self, grid: Grid) -> Grid:
        return replace(grid, symmetric=False) if isinstance(grid, AffineGrid) else grid

    def range(self, sketch: Sketch, grid: AffineGrid) -> ranges.Range:
        return ranges.published_percentile(sketch, self.percentile)


def check_percentile(p: float) -> None:
    """Raises ValueError unless ``p`` is in (50, 100]."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 50 < p <= 100:
        hint = " (did you mean 99.9?)" if p == 0.1 else ""
        raise ValueError(f"percentile must be in (50, 100], got {p!r}{hint}")
