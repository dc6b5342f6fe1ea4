"""Permutation: sorts a site's channels, so that neighbours have like ranges.

It changes nothing by itself. With contiguous groups of channels (``method=peg method.permute=none``) it is
the permutation of Bondarenko et al. 2021, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantlab.calibration.probe import Probe
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis, Permutation
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.transforms.operands import FormulaTransform


@dataclass(frozen=True, kw_only=True)
class ByRange(FormulaTransform):
    """Channels in the order of the width of their range, the narrowest first."""

    def basis(self, probe: Probe, site: Site) -> Basis | None:
        sketch = probe.sketches[site.name]
        return Permutation(FrozenTensor(torch.argsort(sketch.max - sketch.min, stable=True)))
