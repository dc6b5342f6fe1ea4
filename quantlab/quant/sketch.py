"""What one calibration pass keeps of a tensor: enough for every granularity, estimator, bit width and kurtosis.

Memory is O(channels): no activation is kept. All elements share one histogram whose buckets are the top 16 bits of
FP32 (sign, exponent, 7 bits of mantissa), so a bucket's midpoint is within 0.4 % of anything in it, at any scale.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BUCKETS = 1 << 16
POWERS = 4
NEARLY_EQUAL = 1e-6  # of a channel's mean square; m4 / m2^2 then has about 2 of float64's 16 digits left
AT_ONCE = 1 << 18  # elements whose float64 powers fit into a processor's cache

Array = NDArray[np.float64]


def _bucket_edges() -> Array:
    """The finite buckets' lower ends by magnitude, and the end of the last: shape (positive buckets + 1,)."""
    infinity = 0x7F80  # the first bucket that holds no finite number
    return (np.arange(infinity + 1, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


EDGES = _bucket_edges()
MAGNITUDES = np.concatenate([[0.0], (EDGES[1:-1] + np.append(EDGES[2:-1], 2.0**128)) / 2])


@dataclass(kw_only=True)
class Sketch:
    """Statistics of all elements of a tensor that came in batches of shape (elements, channels).

    Per channel: count, extremes and sums of the powers 1 to 4 (float64). Over all channels: a histogram, and the
    extremes of every batch, in order, for running estimators. ``merge`` of two sketches equals one pass over both.
    """

    channels: int
    count: int = 0
    min: Tensor = field(init=False)
    max: Tensor = field(init=False)
    power_sums: Tensor = field(init=False)
    histogram: Tensor = field(init=False)
    batch_extremes: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.min = torch.full((self.channels,), torch.inf)
        self.max = torch.full((self.channels,), -torch.inf)
        self.power_sums = torch.zeros(POWERS, self.channels, dtype=torch.float64)
        self.histogram = torch.zeros(BUCKETS, dtype=torch.long)

    def update(self, x: Tensor) -> None:
        """Adds one batch, shape (elements, channels), FP32. Raises ValueError on NaN or infinity."""
        x = x.detach().cpu().contiguous()
        lo, hi = torch.aminmax(x, dim=0)
        if not (lo.isfinite().all() and hi.isfinite().all()):
            raise ValueError(f"{int((~x.isfinite()).sum())} of {x.numel()} activations are NaN or infinite")
        self.count += len(x)
        self.min, self.max = torch.minimum(self.min, lo), torch.maximum(self.max, hi)
        self.batch_extremes.append((lo.min().item(), hi.max().item()))
        for part in torch.split(x, max(1, AT_ONCE // self.channels)):
            x1 = part.double()
            x2 = x1 * x1
            self.power_sums += torch.stack([x1.sum(0), x2.sum(0), (x2 * x1).sum(0), (x2 * x2).sum(0)])
            self.histogram += histogram(part)

    def merge(self, other: "Sketch") -> "Sketch":
        """The sketch of this tensor's batches followed by the other's. Raises ValueError where channels differ."""
        if self.channels != other.channels:
            raise ValueError(f"cannot merge sketches of {self.channels} and {other.channels} channels")
        merged = Sketch(channels=self.channels, count=self.count + other.count)
        merged.min, merged.max = torch.minimum(self.min, other.min), torch.maximum(self.max, other.max)
        merged.power_sums = self.power_sums + other.power_sums
        merged.histogram = self.histogram + other.histogram
        merged.batch_extremes = self.batch_extremes + other.batch_extremes
        return merged

    @property
    def elements(self) -> int:
        return self.count * self.channels

    def moments(self) -> tuple[float, float, float]:
        """Mean, and central moments m2 and m4, of all elements."""
        return central_moments(self.power_sums.sum(1).numpy(), self.elements)

    def variance(self) -> float:
        """m2 of all elements (the population's, not the sample's)."""
        return self.moments()[1]

    def kurtosis(self) -> float:
        """Pearson's kurtosis m4 / m2^2 of all elements: 3 for a Gaussian; NaN where they are all equal."""
        _, m2, m4 = self.moments()
        all_equal = bool(self.min.min() == self.max.max())  # m2 is then no more than rounding
        return m4 / m2**2 if m2 > 0 and not all_equal else float("nan")

    def channel_kurtosis(self) -> Array:
        """Pearson's kurtosis of each channel, shape (channels,); NaN where its elements are equal, or so nearly that
        the differences of power sums are rounding: at a deviation below a thousandth of the mean."""
        e1, e2, e3, e4 = self.power_sums.numpy() / max(self.count, 1)
        m2, m4 = e2 - e1**2, e4 - 4 * e1 * e3 + 6 * e1**2 * e2 - 3 * e1**4
        varies = (self.min < self.max).numpy() & (m2 > NEARLY_EQUAL * e2)
        kurtosis: Array = np.divide(m4, m2**2, out=np.full(self.channels, np.nan), where=varies)
        return kurtosis

    def magnitudes(self) -> Array:
        """Each channel's largest magnitude, shape (channels,)."""
        largest: Array = torch.maximum(-self.min, self.max).double().numpy()
        return largest

    def energy_top_channels(self, share: float = 0.01) -> float:
        """Share of sum x^2 in the ceil(share) of channels that hold most of it."""
        energy = self.power_sums[1].sort(descending=True).values
        top = int(np.ceil(share * self.channels))
        return float(energy[:top].sum() / energy.sum())

    def energy_top_elements(self, share: float = 0.01) -> float:
        """Share of sum x^2 in the top ``share`` of elements by magnitude (arXiv 2603.04308's "top 1 %"), to the
        histogram's resolution."""
        counts = self.magnitude_counts()[::-1]
        energy = counts * MAGNITUDES[::-1] ** 2
        taken = np.clip(share * self.elements - (np.cumsum(counts) - counts), 0, counts)
        return float((taken * MAGNITUDES[::-1] ** 2).sum() / energy.sum()) if energy.any() else float("nan")

    def magnitude_counts(self) -> Array:
        """Number of elements in each bucket of |x|, in the order of :data:`MAGNITUDES`."""
        signed = self.histogram.numpy()
        half, finite = BUCKETS // 2, len(MAGNITUDES)
        counts: Array = (signed[half : half + finite] + signed[:finite]).astype(np.float64)
        return counts

    def values(self) -> tuple[Array, Array]:
        """Ascending midpoints of the buckets that hold elements, and how many each holds."""
        signed, half, finite = self.histogram.numpy(), BUCKETS // 2, len(MAGNITUDES)
        counts = np.concatenate([signed[:finite][::-1], signed[half : half + finite]]).astype(np.float64)
        midpoints = np.concatenate([-MAGNITUDES[::-1], MAGNITUDES])
        kept = counts > 0
        return midpoints[kept], counts[kept]

    def percentile(self, p: float) -> float:
        """The p-th percentile of all elements, within 0.4 % of its magnitude; 0 and 100 are exact."""
        if p <= 0:
            return self.min.min().item()
        return _percentile(*self.values(), p, self.min.min().item(), self.max.max().item())

    def magnitude_percentile(self, p: float) -> float:
        """The p-th percentile of |x|, within 0.4 %; 100 is exact."""
        largest = max(-self.min.min().item(), self.max.max().item())
        return _percentile(MAGNITUDES, self.magnitude_counts(), p, 0.0, largest)


def histogram(x: Tensor) -> Tensor:
    """Counts of FP32 elements by their top 16 bits, shape (65536,): first the negative ones, by magnitude."""
    keys = (x.contiguous().view(torch.int32) >> 16).flatten().long() + BUCKETS // 2
    return torch.bincount(keys, minlength=BUCKETS)


def central_moments(power_sums: Array, count: int) -> tuple[float, float, float]:
    """Mean, m2 and m4 from the sums of the powers 1 to 4 of ``count`` numbers."""
    e1, e2, e3, e4 = (float(total) / count for total in power_sums)
    m2 = max(e2 - e1**2, 0.0)
    m4 = max(e4 - 4 * e1 * e3 + 6 * e1**2 * e2 - 3 * e1**4, 0.0)
    return e1, m2, m4


def _percentile(values: Array, counts: Array, p: float, lo: float, hi: float) -> float:
    cumulative = np.cumsum(counts)
    if p >= 100:
        return hi
    index = int(np.searchsorted(cumulative, p / 100 * cumulative[-1], side="left"))
    return float(np.clip(values[index], lo, hi))
