"""AWQ: scales up the weights that read large activations, as far as it lowers the output error.

Lin et al. 2024, arXiv 2306.00978, equations 4 and 5, with the normalization and clamps of the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quantlab.calibration.probe import Probe
from quantlab.config.checks import whole
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import OutputError, Readers, SampledTransform

SMALLEST = 1e-4  # of scales, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class Awq(SampledTransform):
    """Each channel divided by ``mean|x|^r``, with r in [0, 1) chosen for the site (:func:`awq_scale`).

    ``rows`` are sampled from calibration. The error is that of the Linears that read the site, with quantized
    weights and FP32 activations; the authors measure it at the block's output.
    """

    steps: int = 20
    rows: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("transform.steps", self.steps, 1)

    def basis(self, probe: Probe, site: Site, rows: Tensor) -> Basis | None:
        scale, exponent = awq_scale(rows, Readers.of(probe, site), self.steps)
        return Diagonal(FrozenTensor(scale)) if exponent else None


def awq_scale(rows: Tensor, readers: Readers, steps: int) -> tuple[Tensor, float]:
    """The scale with the least output error over the rows, and its exponent r, of ``steps`` in [0, 1).

    The exponent 0 is tried first and leaves everything as it is; another one has to be better.
    """
    tried = [(exponent / steps, _scale(rows, exponent / steps)) for exponent in range(steps)]
    error = OutputError(rows, readers)
    errors = [error(Diagonal(FrozenTensor(scale))) for _, scale in tried]
    exponent, scale = tried[errors.index(min(errors))]
    return scale, exponent


def _scale(rows: Tensor, exponent: float) -> Tensor:
    scale = rows.abs().mean(0).pow(exponent).clamp(min=SMALLEST)
    return scale / (scale.max() * scale.min()).sqrt()
