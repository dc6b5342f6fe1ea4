"""Equalization: every channel gets the same range.

Nagel et al. 2019 (arXiv 1906.04721, section 4.1) equalize the channels of weights; RepQ-ViT (Li et al. 2023,
arXiv 2212.08254, section 3.2) those of LayerNorm's outputs, with a shift.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quantlab.calibration.probe import Probe
from quantlab.config.checks import one_of
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import FormulaTransform

SMALLEST = 1e-3  # of a channel's range, as a share of the mean range: narrower ones stay narrower


@dataclass(frozen=True, kw_only=True)
class Equalization(FormulaTransform):
    """Each channel divided by its range, so that one range for the tensor fits all of them.

    ``shift`` also moves the middle of each channel's range to zero.
    """

    shift: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("transform.shift", self.shift, (True, False))

    def basis(self, probe: Probe, site: Site) -> Basis | None:
        sketch = probe.sketches[site.name]
        return equalizing_basis(sketch.min, sketch.max, self.shift)


def equalizing_basis(lo: Tensor, hi: Tensor, shift: bool) -> Basis | None:
    """The scale ``r / mean(r)`` with r the channels' largest magnitudes, from their extremes (channels,).

    With ``shift`` the shift is ``(hi + lo) / 2`` and r is half the width. None where all channels are zero.
    """
    middle = (hi + lo) / 2
    largest = (hi - lo) / 2 if shift else (-lo).maximum(hi)
    mean = largest.mean()
    if not mean > 0:
        return None
    scale = (largest / mean).clamp(min=SMALLEST)
    return Diagonal(FrozenTensor(scale), FrozenTensor(middle) if shift else None)
