"""Outlier Suppression+: shifts every channel to the middle of its range, and shrinks those that stick out.

Wei et al. 2023, arXiv 2304.09145, equations 3 to 6, with the grid of the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from quantlab.calibration.probe import Probe
from quantlab.config.checks import one_of
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import OutputError, Quantize, Readers, SampledTransform, site_quantizer

LEAST_STEPS, STEP = 100, 0.5  # so many thresholds, and no two further apart than this
LOWEST = 1.0  # the lowest threshold
COARSE = 10  # every so many thresholds are tried first


@dataclass(frozen=True, kw_only=True)
class OsPlus(SampledTransform):
    """A shift of ``(max + min) / 2`` and a scale of ``max(1, max|x - z| / t)`` for each channel.

    The threshold t is that of :func:`thresholds` with the least error at the outputs of the Linears that read
    the site, weights and activations quantized; the authors take a block's output. ``rows`` are sampled from
    calibration. Without ``shift`` only the scale is left.
    """

    norm_outputs: bool = True
    shift: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("transform.shift", self.shift, (True, False))

    def basis(self, probe: Probe, site: Site, rows: Tensor) -> Basis | None:
        sketch, quantize = probe.sketches[site.name], partial(site_quantizer, probe, site, rows)
        return os_plus_basis(rows, sketch.min, sketch.max, Readers.of(probe, site), quantize, self.shift)


def os_plus_basis(
    rows: Tensor, lo: Tensor, hi: Tensor, readers: Readers, quantize: Quantize, shift: bool = True
) -> Basis:
    """The basis whose threshold has the least output error over the rows; of equals the highest threshold.

    Every tenth threshold is tried, then those next to the best of them.
    ``lo`` and ``hi`` are the channels' extremes, shape (channels,).
    """
    z = (hi + lo) / 2 if shift else torch.zeros_like(lo)
    largest = (hi - z).maximum(z - lo)
    tried = thresholds(float(largest.max()))
    error = OutputError(rows, readers, quantize)

    @cache
    def basis(index: int) -> Diagonal:
        scale = (largest / tried[index]).clamp(min=1)
        return Diagonal(FrozenTensor(scale), FrozenTensor(z) if shift else None)

    errors = {index: error(basis(index)) for index in range(0, len(tried), COARSE)}
    best = min(errors, key=errors.__getitem__)
    errors |= {
        index: error(basis(index))
        for index in range(max(best - COARSE + 1, 0), min(best + COARSE, len(tried)))
        if index not in errors
    }
    return basis(min(sorted(errors), key=errors.__getitem__))


def thresholds(largest: float) -> list[float]:
    """The thresholds that are tried, from the largest magnitude down to 1; the first one scales nothing.

    Magnitudes below 1 are tried down to a hundredth of the largest.
    """
    lowest = LOWEST if largest > LOWEST else largest / LEAST_STEPS
    steps = max(LEAST_STEPS, int(largest / STEP))
    return (
        [largest - (largest - lowest) * step / steps for step in range(steps + 1)] if largest > 0 else [1.0]
    )
