"""Trains with gates on attention's heads: Bondarenko et al. 2023, arXiv 2306.12929."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quantlab.config.checks import above, part
from quantlab.network.changed_attention import GATES, Gated
from quantlab.network.gate import Gate
from quantlab.network.sites import Site
from quantlab.training.training import Plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class GatedAttention(Plain):
    """What head h brings is multiplied by ``scale * sigmoid(w_h x_h + b_h)``; w and b are learned.

    ``x_h`` is the head's part of the layer's input. Gates begin with w = 0 and ``b = log(pi_init / (1 -
    pi_init))``, so at ``scale * pi_init``, whatever they read. A network that was trained without gates
    begins as it was with ``pi_init`` 0.5 and ``scale`` 2. From scratch, the paper has scale 1 and
    ``pi_init`` 0.25 for OPT, 0.5 for ViT.
    """

    pi_init: float
    scale: float

    def __post_init__(self) -> None:
        part("training.pi_init", self.pi_init)
        above("training.scale", self.scale, 0)

    def change(self) -> Gated:
        """How the checkpoint's attention differs."""
        return Gated(scale=float(self.scale))

    def check(self, skeleton: PreTrainedModel, sites: Sequence[Site]) -> None:
        self.change().check_start(skeleton)

    def start(self, model: PreTrainedModel) -> None:
        self.change().check_start(model)
        self.change().install(model)
        for gate in model.get_submodule(GATES).children():
            assert isinstance(gate, Gate)
            with torch.no_grad():
                gate.bias.fill_(math.log(self.pi_init / (1 - self.pi_init)))
