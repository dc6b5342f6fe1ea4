"""Power of two: channels' ranges brought nearer to the widest by shifts of bits.

The power-of-two factor of FQ-ViT (Lin et al. 2022, arXiv 2111.13824, section 3.2), from ranges instead of a
grid on the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.calibration.probe import Probe
from quantlab.config.checks import whole
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import FormulaTransform


@dataclass(frozen=True, kw_only=True)
class PowerOfTwo(FormulaTransform):
    """Each channel divided by 1, 1/2, 1/4, ... ``2^-levels`` (:func:`power_of_two_scale`)."""

    levels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("transform.levels", self.levels, 0)

    def basis(self, probe: Probe, site: Site) -> Basis | None:
        largest = torch.from_numpy(probe.sketches[site.name].magnitudes())
        if not self.levels or not largest.any():
            return None
        return Diagonal(FrozenTensor(power_of_two_scale(largest, self.levels).float()))


def power_of_two_scale(largest: Tensor, levels: int) -> Tensor:
    """The least power of two, of ``2^-levels`` to 1, that keeps a channel within the widest one's range.

    ``largest`` are the channels' largest magnitudes, shape (channels,).
    """
    share = largest / largest.max()
    return torch.exp2(share.log2().ceil().clamp(-levels, 0))
