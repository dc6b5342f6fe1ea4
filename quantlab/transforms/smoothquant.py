"""SmoothQuant: moves the size of outlier channels from activations to the weights that read them.

Xiao et al. 2023, arXiv 2211.10438, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.calibration.probe import Probe
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import FormulaTransform, Readers

SMALLEST = 1e-5  # of weights and of scales, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(FormulaTransform):
    """Each channel divided by :func:`smoothing_scale`.

    ``alpha`` 1 leaves all of the difficulty to the weights: activations are as if they had a grid a channel.
    ``alpha`` 0 leaves it to the activations: it is not the network as it was.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            isinstance(self.alpha, bool)
            or not isinstance(self.alpha, int | float)
            or not 0 <= self.alpha <= 1
        ):
            raise ValueError(f"transform.alpha must be in [0, 1], got {self.alpha!r}")

    def basis(self, probe: Probe, site: Site) -> Basis | None:
        largest = torch.from_numpy(probe.sketches[site.name].magnitudes())
        return Diagonal(
            FrozenTensor(smoothing_scale(largest, Readers.of(probe, site).largest, self.alpha).float())
        )


def smoothing_scale(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """``s = max|X|^alpha / max|W|^(1 - alpha)`` of each channel, shape (channels,).

    ``inputs`` are the largest magnitudes of a site's channels, ``weights`` those of all weights that read
    them.
    """
    return (inputs.pow(alpha) / weights.clamp(min=SMALLEST).pow(1 - alpha)).clamp(min=SMALLEST)
