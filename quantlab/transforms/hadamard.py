"""Hadamard: rotates an operand, so that an outlier spreads over all channels.

QuaRot (Ashkboos et al. 2024, arXiv 2404.00456) folds most rotations into the weights of a pre-norm network.
Here each one is applied at the operand, as QuaRot's online rotations are, which any network allows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quantlab.calibration.probe import Probe
from quantlab.config.checks import whole
from quantlab.network.sites import Site
from quantlab.quant.basis import Basis
from quantlab.quant.basis import Hadamard as Rotation
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.hadamard import check_size, has_size
from quantlab.transforms.operands import FormulaTransform

# Sites that Linears read, and those of them that no norm makes. The rest of them show when a network runs.
READ = (
    "embed.out",
    "*.attn.in",
    "*.attn.context",
    "*.ffn.in",
    "*.ffn.mid",
    "*.layer.out",
    "final.out",
    "head.in",
    "head.mid",
)
NO_NORM_MAKES = ("*.attn.context", "*.ffn.mid", "head.*")


@dataclass(frozen=True, kw_only=True)
class Hadamard(FormulaTransform):
    """A randomized Hadamard rotation at each site, of all channels or of every ``block`` of them.

    A block of 1 rotates nothing. The signs come from ``seed`` and the site's name.
    """

    block: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("transform.seed", self.seed, 0)
        if self.block is not None:
            whole("transform.block", self.block, 1)
            check_size(self.block)

    def check(self, sites: Sequence[Site]) -> None:
        """Raises ValueError too where the rotation does not fit the channels of a site that Linears read."""
        super().check(sites)
        asked = [site for site in sites if site.matches(self.sites) and site.matches(READ)]
        if self.norm_outputs:
            asked = [site for site in asked if not site.matches(NO_NORM_MAKES)]
        for site in asked:
            if site.channels % (self.block or site.channels) or not has_size(self.block or site.channels):
                common = math.gcd(*(one.channels for one in asked))
                fitting = [size for size in range(1, common + 1) if common % size == 0 and has_size(size)]
                raise ValueError(
                    f"transform=hadamard, site {site.name}: its {site.channels} channels are no multiple of "
                    f"a Hadamard matrix's size, got transform.block={self.block or 'null'}; all of "
                    f"transform.sites can have {', '.join(map(str, fitting))}"
                )

    def basis(self, probe: Probe, site: Site) -> Basis | None:
        if self.block == 1:
            return None
        seed = zlib.crc32(f"{self.seed} {site.name}".encode())
        coins = torch.randint(2, (site.channels,), generator=torch.Generator().manual_seed(seed))
        try:
            return Rotation(FrozenTensor((2 * coins - 1).float()), self.block or site.channels)
        except ValueError as error:
            raise ValueError(f"transform=hadamard, site {site.name}: {error}; see transform.block") from None
