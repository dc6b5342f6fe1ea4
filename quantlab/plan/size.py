"""The size of a quantized model whose integers are packed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from quantlab.plan.plan import ActivationQuant, QuantPlan, WeightQuant
from quantlab.quant.grid import AffineGrid, Grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALE_BYTES = 4  # a scale is FP32


def size_bytes(model: PreTrainedModel, plan: QuantPlan) -> int:
    """Bytes of all parameters at the plan's bits, plus the ranges and groups of the plan. Tied weights count
    once.

    A range costs an FP32 scale, and a zero point of the grid's bits if the grid is asymmetric. A channel's
    group index costs the least whole number of bytes that holds it.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    quantized = {id(parameters[weight.parameter]) for weight in plan.weights}
    untouched = sum(_fp32_bytes(value) for value in model.parameters() if id(value) not in quantized)
    weights = sum(_weight_bytes(parameters[weight.parameter], weight) for weight in plan.weights)
    return untouched + weights + sum(_activation_bytes(item) for item in plan.activations)


def size_fp32_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters in FP32; tied weights count once."""
    return sum(_fp32_bytes(value) for value in model.parameters())


def _fp32_bytes(parameter: nn.Parameter) -> int:
    return 4 * parameter.numel()


def _weight_bytes(parameter: nn.Parameter, weight: WeightQuant) -> int:
    return math.ceil(parameter.numel() * weight.grid.bits / 8) + len(weight.lo) * _range_bytes(weight.grid)


def _activation_bytes(item: ActivationQuant) -> int:
    index_bytes = math.ceil(math.log2(max(len(item.lo), 2)) / 8)
    return len(item.lo) * _range_bytes(item.grid) + len(item.groups) * index_bytes


def _range_bytes(grid: Grid) -> int:
    if not isinstance(grid, AffineGrid):
        return 0
    return SCALE_BYTES + (0 if grid.symmetric else math.ceil(grid.bits / 8))
