"""Inserts a plan into a model, and restores the model bit for bit at the exit."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlab.engines.integer import (
    EncodingQuantizer,
    LinearExecution,
    fused_gelus,
    integer_linears,
    integer_weights,
)
from quantlab.kernels.products import BITS, IntegerWeight
from quantlab.kernels.snapper import Snapper
from quantlab.network.attention import CountedQuantizer, TensorFunction
from quantlab.network.taps import ModuleInput, Tap, tapped
from quantlab.plan.fit import check_activations_fit, check_weights_fit
from quantlab.plan.plan import ActivationQuant, QuantPlan, WeightQuant, weight_ranges
from quantlab.quant.grid import AffineGrid, FloatGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENGINES = ("integer", "simulated")


@dataclass
class Inserted:
    """What ran of an inserted plan."""

    calls: dict[str, int] = field(default_factory=dict)  # by site: how often its quantizer ran
    linears: dict[str, LinearExecution] = field(default_factory=dict)  # by path; filled by the integer engine


InsertActivations = Callable[[Iterable[ActivationQuant]], AbstractContextManager[Inserted]]


@contextmanager
def insert(model: PreTrainedModel, plan: QuantPlan, engine: str = "simulated") -> Iterator[Inserted]:
    """Quantizes the model by the plan until the exit.

    ``simulated`` computes in FP32 on quantized values. ``integer`` uses integer matrix products wherever a
    kernel is exact and fast. Raises ValueError, before anything is changed, if the plan does not fit the
    model.
    """
    with insert_weights(model, plan.weights, engine) as activate, activate(plan.activations) as inserted:
        yield inserted


@contextmanager
def insert_weights(
    model: PreTrainedModel, weights: Iterable[WeightQuant], engine: str
) -> Iterator[InsertActivations]:
    """The weights' half of :func:`insert`: yields a context manager that inserts activations.

    So one plan of activations after another can run on the same weights. Both halves raise ValueError if
    their part of the plan does not fit the model.
    """
    weights = tuple(weights)
    check_weights_fit(model, weights)
    integers = integer_weights(model, weights) if engine == "integer" else {}
    only_products = {
        ModuleInput(path) for path, weight in integers.items() if isinstance(weight, IntegerWeight)
    }
    make = partial(encoding_quantizer, only_products) if engine == "integer" else quantizer
    linears: dict[str, LinearExecution] = {}

    @contextmanager
    def insert_activations(activations: Iterable[ActivationQuant]) -> Iterator[Inserted]:
        activations = tuple(activations)
        check_activations_fit(model, activations)
        inserted = Inserted(calls={item.site: 0 for item in activations}, linears=linears)
        functions = {
            item.tap: CountedQuantizer(
                item.site, make(item, model.device, item.tap.overwrites), inserted.calls
            )
            for item in activations
        }
        with tapped(model, functions), fused_gelus(model, functions):
            yield inserted

    with quantized_weights(model, weights), integer_linears(model, integers, linears):
        yield insert_activations


@contextmanager
def quantized_weights(model: PreTrainedModel, weights: Iterable[WeightQuant]) -> Iterator[None]:
    """Quantizes the parameters until the exit, a tied one once, by its first name.

    The original tensors are kept untouched and put back.
    """
    originals: dict[nn.Parameter, Tensor] = {}
    try:
        for weight in weights:
            parameter = model.get_parameter(weight.parameter)
            if parameter not in originals:  # two names may stand for one parameter
                originals[parameter] = parameter.data
                parameter.data = snap_weight(parameter.data, weight)
        yield
    finally:
        for parameter, original in originals.items():
            parameter.data = original


@contextmanager
def clipped_weights(model: PreTrainedModel, limits: Mapping[str, float]) -> Iterator[None]:
    """Clamps parameters to [-limit, limit] until the exit. The original tensors are kept and put back."""
    originals = {name: model.get_parameter(name).data for name in limits}
    try:
        for name, limit in limits.items():
            model.get_parameter(name).data = originals[name].clamp(-limit, limit)
        yield
    finally:
        for name, original in originals.items():
            model.get_parameter(name).data = original


def snap_weight(value: Tensor, weight: WeightQuant) -> Tensor:
    """A parameter's value, quantized and dequantized."""
    if isinstance(weight.grid, FloatGrid):
        return weight.grid.snap(value)
    lo, hi = weight_ranges(weight, value.ndim)
    scale, zero_point = weight.grid.parameters(lo.to(value.device), hi.to(value.device))
    return weight.grid.snap(value, scale, zero_point)


def quantizer(activation: ActivationQuant, device: torch.device, overwrite: bool = False) -> TensorFunction:
    """The function that quantizes and dequantizes a site's tensor; in place if ``overwrite`` is set."""
    grid = activation.grid
    if isinstance(grid, FloatGrid):
        return grid.snap
    scale, zero_point = activation_parameters(activation, grid)
    if activation.groups:
        groups = torch.tensor(activation.groups)
        after = [1] * (-1 - activation.tap.axis)  # the dimensions after the channels'
        scale, zero_point = (one[groups].reshape(-1, *after) for one in (scale, zero_point))
    return grid.snapper(scale.to(device), zero_point.to(device), overwrite)


def encoding_quantizer(
    only_products: Container[Tap], activation: ActivationQuant, device: torch.device, overwrite: bool
) -> TensorFunction:
    """:func:`quantizer`, whose results have an encoding if it fits into bytes and a Linear may read them.

    ``only_products``: taps whose tensor nothing but integer products reads.
    """
    function = quantizer(activation, device, overwrite)
    if activation.tap.axis != -1 or not isinstance(function, Snapper) or activation.grid.bits > BITS:
        return function
    return EncodingQuantizer(function, activation.groups, values=activation.tap not in only_products)


def activation_parameters(activation: ActivationQuant, grid: AffineGrid) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each range of a site, shape (ranges,)."""
    return grid.parameters(torch.tensor(activation.lo), torch.tensor(activation.hi))
