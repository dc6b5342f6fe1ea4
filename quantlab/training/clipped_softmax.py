"""Trains with a softmax that reaches zero: Bondarenko et al. 2023, arXiv 2306.12929."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlab.config.checks import at_least, whole
from quantlab.network.changed_attention import Clipped
from quantlab.network.sites import Site
from quantlab.training.training import Plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ClippedSoftmax(Plain):
    """Attention's probabilities are ``clip((zeta - gamma) softmax(x) + gamma, 0, 1)`` from the start on.

    ``gamma = -alpha / length`` is one constant, which the checkpoint keeps: ``length`` is T of the paper, the
    tokens of a row in training, and no row's own length. A probability below about ``alpha / length`` becomes
    zero. So a network that was trained without it begins worse than it was, by so much as ``alpha`` is
    larger; with ``alpha`` 0 and ``zeta`` 1 it is plain attention.
    """

    alpha: float
    length: int
    zeta: float

    def __post_init__(self) -> None:
        at_least("training.alpha", self.alpha, 0)
        whole("training.length", self.length, 1)
        at_least("training.zeta", self.zeta, 1)

    def change(self) -> Clipped:
        """How the checkpoint's attention differs."""
        return Clipped(gamma=-self.alpha / self.length, zeta=float(self.zeta))

    def check(self, skeleton: PreTrainedModel, sites: Sequence[Site]) -> None:
        self.change().check_start(skeleton)

    def start(self, model: PreTrainedModel) -> None:
        self.change().check_start(model)
        self.change().install(model)
