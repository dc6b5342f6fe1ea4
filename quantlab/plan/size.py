"""The size of a quantized model whose integers are packed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.basis import Basis
from quantlab.quant.frozen_tensor import FrozenTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


WIDE_BYTES = 2  # of a weight in FP16


def size_bytes(model: PreTrainedModel, plan: QuantPlan) -> int:
    """Bytes of all parameters at the plan's bits, plus the ranges and groups of the plan. Tied weights count
    once.

    A range costs an FP32 scale, and a zero point of the grid's bits if the grid is asymmetric. A channel's
    group index costs the least whole number of bytes that holds it. Bases count the bytes of their arrays.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    quantized = {id(parameters[weight.parameter]) for weight in plan.weights}
    untouched = sum(_fp32_bytes(value) for value in model.parameters() if id(value) not in quantized)
    weights = sum(_weight_bytes(parameters[weight.parameter], weight) for weight in plan.weights)
    activations = sum(_activation_bytes(item) for item in plan.activations)
    return untouched + weights + activations + sum(_array_bytes(item.basis) for item in plan.transforms)


def size_fp32_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters in FP32; tied weights count once."""
    return sum(_fp32_bytes(value) for value in model.parameters())


def _fp32_bytes(parameter: nn.Parameter) -> int:
    return 4 * parameter.numel()


def _weight_bytes(parameter: nn.Parameter, weight: WeightQuant) -> int:
    wide = len(weight.wide) * len(parameter)
    narrow = math.ceil((parameter.numel() - wide) * weight.grid.bits / 8)
    return narrow + WIDE_BYTES * wide + len(weight.lo) * weight.grid.range_bytes


def _activation_bytes(item: ActivationQuant) -> int:
    index_bytes = math.ceil(math.log2(max(len(item.lo), 2)) / 8)
    return len(item.lo) * item.grid.range_bytes + len(item.groups) * index_bytes


def _array_bytes(basis: Basis) -> int:
    arrays = (value.tensor for value in vars(basis).values() if isinstance(value, FrozenTensor))
    return sum(array.numel() * array.element_size() for array in arrays)
