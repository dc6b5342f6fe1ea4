"""Clips the few weights that make a network's outliers, then trains it further."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from quantlab.config.checks import above, at_least, one_of, whole
from quantlab.methods.clip_weight_outliers import limits
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.training.penalties import matrices
from quantlab.training.training import Course, Plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

LIMITS = "_quantlab_limits"  # attribute of a model: the largest magnitude of each weight that was clipped


@dataclass(frozen=True, kw_only=True)
class WeightClipping(Plain):
    """Clips the Linears' weights as ``method=clip_weight_outliers`` does, then trains on the task's loss.

    The ``count`` largest weights beyond ``sigmas`` standard deviations of their matrix are clipped (None: all
    of them). ``held``: they are clipped again after each step, so that none of their matrices grows beyond
    the limit. A matrix that an embedding shares is left out.
    """

    sigmas: float
    count: int | None
    held: bool

    def __post_init__(self) -> None:
        (above if self.count is None else at_least)("training.sigmas", self.sigmas, 0)  # 0 clips all to zero
        one_of("training.held", self.held, (True, False))
        if self.count is not None:
            whole("training.count", self.count, 0)

    def start(self, model: PreTrainedModel) -> None:
        weights = {name: matrix.detach() for name, matrix in matrices(model).items()}
        found = limits(weights, self.sigmas, self.count)
        if not found and self.count != 0:
            largest = max(float(weight.abs().max() / weight.std()) for weight in weights.values())
            log.warning(
                "no weight lies beyond training.sigmas=%g standard deviations (the largest: %.1f), so "
                "training=weight_clipping trains as training=plain does",
                self.sigmas,
                largest,
            )
        clip(model, found)
        vars(model)[LIMITS] = found

    @contextmanager
    def course(self, model: PreTrainedModel, sites: Sequence[Site], plan: QuantPlan) -> Iterator[Course]:
        """Raises KeyError for a model that :meth:`start` has not clipped."""
        found: Mapping[str, float] = vars(model)[LIMITS]
        yield Course(after_step=partial(clip, model, found) if self.held else None)


@torch.no_grad()
def clip(model: PreTrainedModel, limits: Mapping[str, float]) -> None:
    """Clamps each of the named parameters to its limit, in place."""
    for name, limit in limits.items():
        model.get_parameter(name).clamp_(-limit, limit)
