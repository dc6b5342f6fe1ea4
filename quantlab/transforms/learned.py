"""Learned: a scale and a shift for every channel, by gradient on the error of the outputs.

OmniQuant's learnable equivalent transformation (Shao et al. 2024, arXiv 2308.13137, section 3.3) at the
operand. The authors take the error of a whole block, and learn clipping besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantlab.calibration.probe import Probe
from quantlab.config.checks import above, one_of, whole
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import (
    Function,
    OutputError,
    Quantize,
    Readers,
    SampledTransform,
    identity,
    site_quantizer,
)
from quantlab.transforms.smoothquant import smoothing_scale

INITIAL_ALPHA = 0.5
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Learned(SampledTransform):
    """A learned scale and shift (:func:`learned_basis`), from ``rows`` sampled from calibration.

    It starts from SmoothQuant's scale with alpha 0.5 and from the middle of each channel's range, as the
    authors do. A site keeps its own basis where what is learned is no better. No iterations learn nothing.
    """

    norm_outputs: bool = True
    iterations: int = 100
    learning_rate: float = 5e-3
    shift: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("transform.iterations", self.iterations, 0)
        above("transform.learning_rate", self.learning_rate, 0)
        one_of("transform.shift", self.shift, (True, False))

    def basis(self, probe: Probe, site: Site, rows: Tensor) -> Basis | None:
        if not self.iterations:
            return None
        readers, sketch = Readers.of(probe, site), probe.sketches[site.name]
        quantize = partial(site_quantizer, probe, site, rows)
        z = (sketch.max + sketch.min) / 2 if self.shift else torch.zeros_like(sketch.min)
        scale = smoothing_scale((sketch.max - z).maximum(z - sketch.min), readers.largest, INITIAL_ALPHA)
        start = Diagonal(FrozenTensor(scale), FrozenTensor(z) if self.shift else None)
        basis = learned_basis(rows, start, readers, quantize, self.iterations, self.learning_rate)
        error = OutputError(rows, readers, quantize)
        return basis if error(basis) < error(identity(site.channels)) else None


def learned_basis(
    rows: Tensor, start: Diagonal, readers: Readers, quantize: Quantize, iterations: int, learning_rate: float
) -> Diagonal:
    """The basis after so many steps of Adam on the outputs' squared error over all rows.

    What is learned are the logarithm of the scale, and the shift where ``start`` has one.
    """
    log_scale = start.scale.tensor.to(rows.device).log().requires_grad_()
    shift = None if start.shift is None else start.shift.tensor.to(rows.device, copy=True).requires_grad_()
    optimizer = torch.optim.Adam([log_scale, *([] if shift is None else [shift])], lr=learning_rate)
    original = readers.outputs(rows)
    for _ in range(iterations):
        basis = _frozen(log_scale, shift)
        with torch.enable_grad():
            scale, z = log_scale.exp(), torch.zeros(()) if shift is None else shift
            seen = _quantized((rows - z) / scale, quantize(basis)) * scale + z
            weights = [
                _quantized(weight * scale, snap) / scale
                for weight, snap in zip(readers.weights, readers.snaps, strict=True)
            ]
            loss = (readers.quantized_outputs(seen, weights, shift) - original).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _frozen(log_scale, shift)


def _frozen(log_scale: Tensor, shift: Tensor | None) -> Diagonal:
    return Diagonal(
        FrozenTensor(log_scale.detach().exp()), None if shift is None else FrozenTensor(shift.detach())
    )


def _quantized(x: Tensor, quantize: Function) -> Tensor:
    """What ``quantize`` makes of x, with a gradient: errors are a constant share of the largest number."""
    largest = x.abs().max().clamp(min=SMALLEST)
    with torch.no_grad():
        error = (quantize(x.detach().clone()) - x) / largest
    return x + error * largest
