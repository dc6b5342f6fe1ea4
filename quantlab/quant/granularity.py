"""Granularity: which channels of a tensor share one range."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.config.checks import one_of, whole


class Granularity(ABC):
    """How channels are grouped, from their extremes."""

    @abstractmethod
    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        """The group index (0, 1, ...) of every channel, shape (channels,). No group is empty.

        ``lo`` and ``hi`` are the channels' extremes, shape (channels,). Raises ValueError if there are more
        groups than channels.
        """


@dataclass(frozen=True, kw_only=True)
class PerTensor(Granularity):
    """One range for the whole tensor."""

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        return torch.zeros(len(lo), dtype=torch.long)

    def __str__(self) -> str:
        return "per tensor"


PER_TENSOR = PerTensor()


@dataclass(frozen=True, kw_only=True)
class PerChannel(Granularity):
    """One range per channel."""

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        return torch.arange(len(lo))

    def __str__(self) -> str:
        return "per channel"


@dataclass(frozen=True, kw_only=True)
class PerGroup(Granularity):
    """One range for each of ``k`` groups of channels, whose sizes differ by one channel at most.

    Per-embedding-group quantization (PEG), Bondarenko et al. 2021, section 4. ``permute="range"`` first sorts
    the channels by the width of their range, so that outliers share a group; ``"none"`` leaves groups
    contiguous.
    """

    k: int
    permute: str = "range"

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        one_of("permute", self.permute, ("none", "range"))

    def assign(self, lo: Tensor, hi: Tensor) -> Tensor:
        whole("k", self.k, 1, len(lo))
        order = torch.argsort(hi - lo, stable=True) if self.permute == "range" else torch.arange(len(lo))
        groups = torch.empty(len(lo), dtype=torch.long)
        for group, channels in enumerate(torch.tensor_split(order, self.k)):
            groups[channels] = group
        return groups

    def __str__(self) -> str:
        return f"{self.k} groups" + (", permuted by range" if self.permute == "range" else "")


def group_extremes(lo: Tensor, hi: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest ``lo`` and the largest ``hi`` in each group: (channels,) -> (groups,)."""
    count = int(groups.max()) + 1
    empty = lo.new_full((count,), torch.inf)
    return empty.scatter_reduce(0, groups, lo, "amin"), (-empty).scatter_reduce(0, groups, hi, "amax")
