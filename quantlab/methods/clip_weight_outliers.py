"""Clips the few weights that make a network's outliers: the last step back from why W8A8 collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlab.config.checks import above, at_least, whole
from quantlab.machine.parallel import side_by_side
from quantlab.methods.bits import Bits, weight_of, weighted_modules
from quantlab.methods.method import Method
from quantlab.plan.edits import Clip, Edit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ClipWeightOutliers(Method):
    """Per tensor everywhere, with the ``count`` largest weights beyond ``sigmas`` standard deviations of
    their Linear's matrix clipped (``count`` None: all of them). Size is counted in standard deviations, over
    all matrices together.

    A matrix is clipped to its largest weight that is not among them, or to ``sigmas`` standard deviations
    where that is more: no other weight changes. Activation ranges are those of the clipped network. Measured
    on a BERT whose huge FFN-output weights an MSE weight range clips by accident (Bondarenko et al. 2021 use
    that range).
    """

    sigmas: float
    count: int | None = None

    def __post_init__(self) -> None:
        (above if self.count is None else at_least)("method.sigmas", self.sigmas, 0)  # 0 clips all to zero
        if self.count is not None:
            whole("method.count", self.count, 0)

    def edits(self, model: PreTrainedModel, bits: Bits) -> tuple[Edit, ...]:
        """Raises ValueError where no matrix is on an integer grid: the others are not clipped."""
        linears = {name: m for name, m in weighted_modules(model).items() if isinstance(m, nn.Linear)}
        grids = {name: bits.weight_grid(name, linear) for name, linear in linears.items()}
        on_grids = {name: weight_of(linears[name]) for name, grid in grids.items() if grid and grid.ranged}
        if not on_grids:
            raise ValueError(
                "clip_weight_outliers clips weights of integer grids: bits.weights must be 2..16"
            )
        return tuple(
            Clip(parameter=name, limit=limit)
            for name, limit in limits(on_grids, self.sigmas, self.count).items()
        )


def limits(weights: Mapping[str, Tensor], sigmas: float, count: int | None) -> dict[str, float]:
    """The largest magnitude that stays of each matrix that has a weight to clip."""
    magnitudes = {name: weight.abs().flatten() for name, weight in weights.items()}
    deviations = dict(
        zip(weights, side_by_side(_deviation, list(weights.values()), torch.device("cpu")), strict=True)
    )
    beyond = {name: _descending(magnitudes[name], sigmas * deviations[name]) for name in weights}
    ranked = sorted(
        ((float(w) / deviations[n], n) for n, largest in beyond.items() for w in largest), reverse=True
    )
    chosen = [name for _, name in ranked[:count]]
    kept = {name: _first(beyond[name][chosen.count(name) :]) for name in dict.fromkeys(chosen)}
    return {name: max(largest, sigmas * deviations[name]) for name, largest in kept.items()}


def _deviation(weight: Tensor) -> float:
    return float(weight.std())


def _descending(magnitudes: Tensor, bound: float) -> Tensor:
    return torch.sort(magnitudes[magnitudes > bound], descending=True).values


def _first(values: Sequence[float] | Tensor) -> float:
    return float(values[0]) if len(values) else 0.0
