"""Granularity: which channels of a tensor share one range."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.config.checks import one_of, whole


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One range for all channels."""

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        """The group (0, 1, ...) of every channel, shape (channels,), from the channels' ranges ``lo`` and
        ``hi``."""
        return torch.zeros(len(lo), dtype=torch.long)

    def __str__(self) -> str:
        return "per tensor"


PER_TENSOR = PerTensor()


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One range a channel."""

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        """As :meth:`PerTensor.assign`."""
        return torch.arange(len(lo))

    def __str__(self) -> str:
        return "per channel"


@dataclass(frozen=True, kw_only=True)
class PerGroup:
    """K groups of nearly equal size (they differ by one channel at most), one range each.

    Per-embedding-group quantization, Bondarenko et al. 2021, section 4. With ``permute="range"`` the channels
    are sorted by the width of their range first, so that outliers share a group; with ``"none"`` groups are
    contiguous.
    """

    k: int
    permute: str = "range"

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        one_of("permute", self.permute, ("none", "range"))

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        """As :meth:`PerTensor.assign`. Raises ValueError where there are more groups than channels."""
        whole("k", self.k, 1, len(lo))
        order = torch.argsort(hi - lo, stable=True) if self.permute == "range" else torch.arange(len(lo))
        groups = torch.empty(len(lo), dtype=torch.long)
        for group, channels in enumerate(torch.tensor_split(order, self.k)):
            groups[channels] = group
        return groups

    def __str__(self) -> str:
        return f"{self.k} groups" + (", permuted by range" if self.permute == "range" else "")


Granularity = PerTensor | PerChannel | PerGroup


def group_extremes(lo: Tensor, hi: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest ``lo`` and largest ``hi`` of each group's channels, shape (number of groups,)."""
    count = int(groups.max()) + 1
    empty = lo.new_full((count,), torch.inf)
    return empty.scatter_reduce(0, groups, lo, "amin"), (-empty).scatter_reduce(0, groups, hi, "amax")
