"""Sketches: the statistics of a tensor that one calibration pass keeps.

They serve every granularity, estimator and bit width, and kurtosis. Memory is O(channels): no activation is
kept. All elements share one histogram whose buckets are the top 16 bits of FP32 (sign, exponent, 7 bits of
mantissa), so a bucket's midpoint is within 0.4 % of every element in it, at any scale.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BUCKETS = 1 << 16
AT_ONCE = 1 << 18  # elements processed together: their float64 powers fit into a processor's cache

Array = NDArray[np.float64]


def _bucket_edges() -> Array:
    """The lower ends of the positive finite buckets, and the upper end of the last, ascending."""
    infinity = 0x7F80  # the first bucket without finite numbers
    return (np.arange(infinity + 1, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


EDGES = _bucket_edges()
MAGNITUDES = np.concatenate([[0.0], (EDGES[1:-1] + np.append(EDGES[2:-1], 2.0**128)) / 2])


@dataclass(kw_only=True)
class Sketch:
    """Statistics of a tensor that comes in batches of shape (elements, channels).

    Per channel: count, extremes, the mean, and the sums of ``(x - mean)^p`` for p = 2, 3, 4 in float64 (sums
    of ``x^p`` would lose a small spread around a large mean). Over all channels: a histogram, and the
    extremes of every batch in order, for running estimators. ``merge`` of two sketches equals one pass over
    both, up to rounding.

    With ``tokens`` it also keeps histograms of the smallest and of the largest channel of each element
    (token), for estimators that clip whole tokens.
    """

    channels: int
    tokens: bool = False
    count: int = 0
    min: Tensor = field(init=False)
    max: Tensor = field(init=False)
    moment_sums: Tensor = field(init=False)  # (4, channels): mean, then sums of (x - mean)^p, p = 2, 3, 4
    histogram: Tensor = field(init=False)
    token_histograms: Tensor = field(
        init=False
    )  # (2, buckets) of each token's smallest and largest, or empty
    batch_extremes: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.min = torch.full((self.channels,), torch.inf)
        self.max = torch.full((self.channels,), -torch.inf)
        self.moment_sums = torch.zeros(4, self.channels, dtype=torch.float64)
        self.histogram = torch.zeros(BUCKETS, dtype=torch.long)
        self.token_histograms = torch.zeros(2 if self.tokens else 0, BUCKETS, dtype=torch.long)

    def update(self, x: Tensor) -> None:
        """Adds one batch, shape (elements, channels), FP32. Raises ValueError on NaN or infinity."""
        x = x.detach().cpu().contiguous()
        lo, hi = torch.aminmax(x, dim=0)
        if not (lo.isfinite().all() and hi.isfinite().all()):
            raise ValueError(f"{int((~x.isfinite()).sum())} of {x.numel()} activations are NaN or infinite")
        self.min, self.max = torch.minimum(self.min, lo), torch.maximum(self.max, hi)
        self.batch_extremes.append((lo.min().item(), hi.max().item()))
        for part in torch.split(x, max(1, AT_ONCE // self.channels)):
            self.moment_sums = merged_moment_sums(
                self.moment_sums, self.count, moment_sums(part.double()), len(part)
            )
            self.count += len(part)
            self.histogram += histogram(part)
            if self.tokens:
                self.token_histograms += torch.stack([histogram(end) for end in torch.aminmax(part, dim=1)])

    def merge(self, other: "Sketch") -> "Sketch":
        """The sketch of this sketch's batches followed by the other's.

        Raises ValueError if the numbers of channels differ.
        """
        if self.channels != other.channels:
            raise ValueError(f"cannot merge sketches of {self.channels} and {other.channels} channels")
        merged = Sketch(
            channels=self.channels, tokens=self.tokens and other.tokens, count=self.count + other.count
        )
        merged.min, merged.max = torch.minimum(self.min, other.min), torch.maximum(self.max, other.max)
        merged.moment_sums = merged_moment_sums(self.moment_sums, self.count, other.moment_sums, other.count)
        merged.histogram = self.histogram + other.histogram
        if merged.tokens:
            merged.token_histograms = self.token_histograms + other.token_histograms
        merged.batch_extremes = self.batch_extremes + other.batch_extremes
        return merged

    @property
    def elements(self) -> int:
        return self.count * self.channels

    def moments(self) -> tuple[float, float, float]:
        """Mean and central moments m2 and m4 of all elements.

        With f the distance of a channel's mean to the overall mean, and s_p the channel's sums:
        ``n m2 = sum (s2 + count f^2)``, ``n m4 = sum (s4 + 4 f s3 + 6 f^2 s2 + count f^4)``.
        """
        means, s2, s3, s4 = self.moment_sums.numpy()
        mean = float(means.mean())
        far = means - mean
        m2 = float((s2 + self.count * far**2).sum()) / self.elements
        m4 = float((s4 + 4 * far * s3 + 6 * far**2 * s2 + self.count * far**4).sum()) / self.elements
        return mean, m2, m4

    def variance(self) -> float:
        """Variance of all elements, divided by n and not by n - 1."""
        return self.moments()[1]

    def kurtosis(self) -> float:
        """Pearson's kurtosis m4 / m2^2 of all elements: 3 for a Gaussian, NaN if all are equal."""
        _, m2, m4 = self.moments()
        all_equal = bool(self.min.min() == self.max.max())  # m2 is rounding error then
        return m4 / m2**2 if m2 > 0 and not all_equal else float("nan")

    def channel_kurtosis(self) -> Array:
        """Pearson's kurtosis of each channel, shape (channels,); NaN for a channel whose elements are all
        equal."""
        _, m2, _, m4 = self.moment_sums.numpy() / max(self.count, 1)
        varies = (self.min < self.max).numpy()
        kurtosis: Array = np.divide(m4, m2**2, out=np.full(self.channels, np.nan), where=varies)
        return kurtosis

    def magnitudes(self) -> Array:
        """Each channel's largest magnitude, shape (channels,)."""
        largest: Array = torch.maximum(-self.min, self.max).double().numpy()
        return largest

    def energies(self) -> Tensor:
        """``sum x^2 = s2 + count mean^2`` of each channel, float64, shape (channels,)."""
        means, s2 = self.moment_sums[:2]
        energies: Tensor = s2 + self.count * means**2
        return energies

    def energy_top_channels(self, share: float = 0.01) -> float:
        """Share of ``sum x^2`` in the ``ceil(share channels)`` channels that hold most of it."""
        energy = self.energies().sort(descending=True).values
        top = int(np.ceil(share * self.channels))
        return float(energy[:top].sum() / energy.sum())

    def energy_top_elements(self, share: float = 0.01) -> float:
        """Share of ``sum x^2`` in the top ``share`` of elements by magnitude, to the histogram's resolution.

        It is the "top 1 %" of arXiv 2603.04308. NaN if all elements are zero.
        """
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
        """Midpoints of the buckets that are not empty, ascending, and the number of elements in each."""
        return _values(self.histogram)

    def percentile(self, p: float) -> float:
        """The p-th percentile of x, within 0.4 % of its magnitude; p = 0 and p = 100 are exact."""
        if p <= 0:
            return self.min.min().item()
        return _percentile(*self.values(), p, self.min.min().item(), self.max.max().item())

    def token_percentile(self, p: float) -> tuple[float, float]:
        """The (100 - p)-th percentile of the tokens' smallest and the p-th of their largest channels.

        Within 0.4 %; p = 100 is exact. Raises ValueError for a sketch without tokens.
        """
        if not self.tokens:
            raise ValueError("the sketch has no extremes of tokens")
        lo, hi = self.min.min().item(), self.max.max().item()
        smallest, largest = map(_values, self.token_histograms)
        low = lo if p >= 100 else _percentile(*smallest, 100 - p, lo, hi)
        return low, _percentile(*largest, p, lo, hi)

    def magnitude_percentile(self, p: float) -> float:
        """The p-th percentile of |x|, within 0.4 %; p = 100 is exact."""
        largest = max(-self.min.min().item(), self.max.max().item())
        return _percentile(MAGNITUDES, self.magnitude_counts(), p, 0.0, largest)


def _values(signed_histogram: Tensor) -> tuple[Array, Array]:
    """Midpoints of a histogram's buckets that are not empty, ascending, and the counts in each."""
    signed, half, finite = signed_histogram.numpy(), BUCKETS // 2, len(MAGNITUDES)
    counts = np.concatenate([signed[:finite][::-1], signed[half : half + finite]]).astype(np.float64)
    midpoints = np.concatenate([-MAGNITUDES[::-1], MAGNITUDES])
    kept = counts > 0
    return midpoints[kept], counts[kept]


def histogram(x: Tensor) -> Tensor:
    """Counts of FP32 elements by their top 16 bits, shape (65536,): the negative half first, each half by
    magnitude."""
    keys = (x.contiguous().view(torch.int32) >> 16).flatten().long() + BUCKETS // 2
    return torch.bincount(keys, minlength=BUCKETS)


def moment_sums(x: Tensor) -> Tensor:
    """Mean and ``sum (x - mean)^p``, p = 2, 3, 4, of each channel: (elements, channels) -> (4, channels)."""
    mean = x.mean(0)
    d1 = x - mean
    d2 = d1 * d1
    return torch.stack([mean, d2.sum(0), (d2 * d1).sum(0), (d2 * d2).sum(0)])


def merged_moment_sums(a: Tensor, count_a: int, b: Tensor, count_b: int) -> Tensor:
    """:func:`moment_sums` of two parts together, from those of each part (Pebay 2008, SAND2008-6212, eq.
    2.1)."""
    count = count_a + count_b
    if count == 0:
        return a
    share_a, share_b = count_a / count, count_b / count
    (mean_a, a2, a3, a4), (mean_b, b2, b3, b4) = a, b
    d = mean_b - mean_a
    both = count * share_a * share_b
    return torch.stack(
        [
            mean_a + d * share_b,
            a2 + b2 + d**2 * both,
            a3 + b3 + d**3 * both * (share_a - share_b) + 3 * d * (share_a * b2 - share_b * a2),
            a4
            + b4
            + d**4 * both * (share_a**2 - share_a * share_b + share_b**2)
            + 6 * d**2 * (share_a**2 * b2 + share_b**2 * a2)
            + 4 * d * (share_a * b3 - share_b * a3),
        ]
    )


def _percentile(values: Array, counts: Array, p: float, lo: float, hi: float) -> float:
    """The first of the ascending ``values`` at which p % of all counts are reached, clipped to [lo, hi]."""
    cumulative = np.cumsum(counts)
    if p >= 100:
        return hi
    index = int(np.searchsorted(cumulative, p / 100 * cumulative[-1], side="left"))
    return float(np.clip(values[index], lo, hi))
