"""Inserts a plan into a model, and restores the model bit for bit at the exit."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantlab.engines.encoders import Encoder, EncodingQuantizer, RestEncoder, TokenEncoder, WideEncoder
from quantlab.engines.integer import (
    LinearExecution,
    fused_gelus,
    heads_on_grids,
    integer_linears,
    integer_weights,
)
from quantlab.engines.wide import float_forwards, note_wide, wide_linears
from quantlab.kernels.products import IntegerWeight
from quantlab.kernels.snapper import Snapper
from quantlab.network.attention import CountedQuantizer, TensorFunction
from quantlab.network.taps import ModuleInput, Tap, tapped
from quantlab.plan.fit import check_activations_fit, check_weights_fit
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.basis import Basis
from quantlab.quant.dynamic import DynamicGrid
from quantlab.quant.grid import BYTE_BITS, AffineGrid
from quantlab.quant.split import Rest, WideColumns

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
    with insert_weights(model, plan, engine) as activate, activate(plan.activations) as inserted:
        yield inserted


@contextmanager
def insert_weights(
    model: PreTrainedModel, plan: QuantPlan, engine: str = "simulated"
) -> Iterator[InsertActivations]:
    """The weights' half of :func:`insert`: yields a context manager that inserts activations.

    So one set of activations after another can run on the same weights; those of ``plan`` are left out. Both
    halves raise ValueError if their part of the plan does not fit the model.
    """
    check_weights_fit(model, plan)
    floats = float_forwards(model, plan)
    integers = integer_weights(model, plan) if engine == "integer" else {}
    only_products = {
        ModuleInput(path) for path, weight in integers.items() if isinstance(weight, IntegerWeight)
    }
    linears: dict[str, LinearExecution] = {}

    @contextmanager
    def insert_activations(activations: Iterable[ActivationQuant]) -> Iterator[Inserted]:
        activations = tuple(activations)
        check_activations_fit(model, activations)
        inserted = Inserted(calls={item.site: 0 for item in activations}, linears=linears)
        functions: dict[Tap, TensorFunction] = {}
        for item in activations:
            basis, overwrite = plan.site_bases.get(item.site), item.tap.overwrites
            if engine == "integer":
                function = encoding_quantizer(item, basis, model.device, overwrite, only_products)
            else:
                function = quantizer(item, model.device, overwrite, basis)
            functions[item.tap] = CountedQuantizer(item.site, function, inserted.calls)
        by_batch = any(item.split is not None and item.split.by_batch for item in activations)
        forwards = floats if by_batch else {}
        heads, gelus = heads_on_grids(model, functions), fused_gelus(model, functions)
        with tapped(model, functions), heads, gelus, wide_linears(forwards):
            yield inserted

    with quantized_weights(model, plan), integer_linears(model, integers, linears, floats):
        yield insert_activations


@contextmanager
def quantized_weights(model: PreTrainedModel, plan: QuantPlan) -> Iterator[None]:
    """Edits and quantizes the parameters until the exit, a tied one once, by its first name.

    A Linear whose site has a basis with a shift z gains ``z (W - W~)^T`` in its bias, so that z passes the
    weight W that is not rounded. The original tensors are kept untouched and put back.
    """
    with edited_weights(model, plan), _replaced() as replace:
        quantized: set[nn.Parameter] = set()
        for weight in plan.weights:
            parameter = model.get_parameter(weight.parameter)
            if parameter in quantized:  # two names may stand for one parameter
                continue
            quantized.add(parameter)
            value, basis = parameter.data, plan.weight_bases.get(weight.parameter)
            snapped = snap_weight(value, weight, basis)
            replace(parameter, snapped)
            bias = model.get_submodule(weight.parameter.rpartition(".")[0]).bias if basis else None
            if basis is not None and basis.shift is not None and isinstance(bias, nn.Parameter):
                replace(bias, bias.data + functional.linear(basis.shift.tensor.to(value), value - snapped))
        yield


@contextmanager
def edited_weights(model: PreTrainedModel, plan: QuantPlan) -> Iterator[None]:
    """Edits the parameters until the exit, without quantizing them."""
    with _replaced() as replace:
        for edit in plan.edits:
            parameter = model.get_parameter(edit.parameter)
            replace(parameter, edit(parameter.data))
        yield


@contextmanager
def _replaced() -> Iterator[Callable[[nn.Parameter, Tensor], None]]:
    """Yields a function that gives a parameter another tensor. The first ones are put back at the exit."""
    originals: dict[nn.Parameter, Tensor] = {}

    def replace(parameter: nn.Parameter, value: Tensor) -> None:
        originals.setdefault(parameter, parameter.data)
        parameter.data = value

    try:
        yield replace
    finally:
        for parameter, original in originals.items():
            parameter.data = original


def snap_weight(value: Tensor, weight: WeightQuant, basis: Basis | None = None) -> Tensor:
    """A parameter's value, quantized and dequantized, in a basis if it has one."""
    if basis is None:
        return weight.snap(value)
    return basis.weight_back(weight.snap(basis.weight(value)))


def quantizer(
    activation: ActivationQuant, device: torch.device, overwrite: bool = False, basis: Basis | None = None
) -> TensorFunction:
    """The function that quantizes and dequantizes a site's tensor, in a basis if the site has one.

    It works in place if ``overwrite`` is set, where it can.
    """
    split = activation.split
    if isinstance(split, WideColumns) and split.by_batch:
        return _noting(activation.function(device, overwrite or basis is not None), split, basis)
    if basis is None:
        return activation.function(device, overwrite)
    snap = activation.function(device, overwrite=True)
    return lambda x: basis.back(snap(basis.forward(x)))


def _noting(snap: TensorFunction, split: WideColumns, basis: Basis | None) -> TensorFunction:
    """A quantizer that notes the batch's wide columns on its result."""

    def quantize(x: Tensor) -> Tensor:
        based = x if basis is None else basis.forward(x)
        wide = split.wide(based)
        kept = split.keep(based.index_select(-1, wide))
        snapped = snap(based)
        y = snapped if basis is None else basis.back(snapped)
        note_wide(y, wide, kept)
        return y

    return quantize


def encoding_quantizer(
    activation: ActivationQuant,
    basis: Basis | None,
    device: torch.device,
    overwrite: bool,
    only_products: Container[Tap],
) -> TensorFunction:
    """:func:`quantizer`, whose results have an encoding if it fits into bytes and a Linear may read them.

    ``only_products``: taps whose tensor nothing but integer products reads.
    """
    tap, grid, split = activation.tap, activation.grid, activation.split
    values, in_place = tap not in only_products, overwrite or basis is not None
    if tap.axis != -1 or grid.bits > BYTE_BITS or not (grid.in_bytes or grid.per_token):
        return quantizer(activation, device, overwrite, basis)
    if isinstance(split, Rest):
        scale, zero_point = (part.to(device) for part in activation.parameters())
        assert isinstance(grid, AffineGrid)
        return RestEncoder(grid, scale, zero_point, split, values, basis)
    if isinstance(grid, DynamicGrid):
        encoder: Encoder = TokenEncoder(grid, values, basis, in_place)
    else:
        snapper = activation.narrow_function(device, in_place)
        assert isinstance(snapper, Snapper)
        encoder = EncodingQuantizer(snapper, activation.groups, values, basis)
    return WideEncoder(encoder, split) if isinstance(split, WideColumns) else encoder
