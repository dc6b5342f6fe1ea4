"""Outlier Suppression: quantizes what a norm makes without its gamma, which its reading weights take over.

Wei et al. 2022, arXiv 2209.13325, section 4.1 (gamma migration).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantlab.calibration.probe import Probe
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Diagonal
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import FormulaTransform

SMALLEST = 1e-2  # of a gamma, as a share of the mean: smaller ones would make outliers of the norm's bias


@dataclass(frozen=True, kw_only=True)
class GammaMigration(FormulaTransform):
    """Each channel divided by the magnitude of its gamma in the norm that makes the site.

    Sites that no norm makes have no gamma and are left out.
    """

    norm_outputs: bool = field(default=True, init=False)

    def basis(self, probe: Probe, site: Site) -> Basis | None:
        gamma = gamma_of(probe.model.get_submodule(probe.norms[site.name]))
        return Diagonal(FrozenTensor(migrated_scale(gamma)))


def migrated_scale(gamma: Tensor) -> Tensor:
    """``|gamma|``, of a hundredth of the mean at least, shape (channels,)."""
    size = gamma.abs()
    return size.clamp(min=SMALLEST * float(size.mean()))


@torch.inference_mode()
def gamma_of(norm: nn.Module) -> Tensor:
    """The factor of each channel of a LayerNorm or RMSNorm, shape (channels,).

    It is read from what the norm makes of 1, -1, 1, -1, ..., whose mean is zero and whose size is one: some
    families' weight is the factor itself, others' is the factor less one.
    """
    weight = norm.weight
    assert isinstance(weight, Tensor)
    x = (1 - 2 * (torch.arange(len(weight)) % 2)).to(weight)
    factor: Tensor = (norm.forward(x) - norm.forward(-x)) / 2 * x
    return factor.clone()
