"""What a plan's model is in ONNX: float operators between QuantizeLinear and DequantizeLinear.

Runtimes turn ``MatMul(DequantizeLinear(x), DequantizeLinear(w))`` into integer products. Activations of 8
bits are unsigned bytes; symmetric ones have zero point 128, where ONNX's grid has one level more than
quantlab's (-128). A site with groups is split into them, each with one range, so that its products run in
integers too. The integers of a site with a grid for every token go to MatMulInteger.

A site with a basis is quantized in it. The Linears that read the site multiply tensor and weight in the
basis. The way back is computed where anything else reads the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantlab.engines.encodings import channels_by_group
from quantlab.engines.insert import quantized_weights, snap_weight
from quantlab.engines.integer import signed_integers
from quantlab.kernels.snapper import MIDDLE
from quantlab.network.attention import TensorFunction
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.basis import Basis
from quantlab.quant.dynamic import DynamicGrid
from quantlab.runtimes.operands import (
    Operand,
    Parts,
    StoredWeight,
    Whole,
    dequantized,
    quantize_dequantize_linear,
    tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT_BITS = 16
READ = "_quantlab_read"  # attribute of a quantized tensor: what Linears read of it, a Read


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """A quantized tensor in the basis that it is quantized in."""

    operand: Operand
    basis: Basis | None


@contextmanager
def quantize_dequantize(model: PreTrainedModel, plan: QuantPlan, signed: bool = False) -> Iterator[None]:
    """Makes a trace of the model contain ONNX's quantization operators, until the exit.

    The operators only stand for the computation: the model computes no useful values meanwhile.
    """
    weights = {weight.parameter: weight for weight in plan.weights}
    integers = {name: weight for name, weight in weights.items() if weight.grid.in_bytes}
    for basis in plan.site_bases.values():
        basis.back(basis.forward(torch.zeros(1, basis.channels)))  # what it caches must be no trace's tensors
    changed: list[nn.Module] = []
    with ExitStack() as stack:
        stack.callback(lambda: [vars(module).pop("forward", None) for module in changed])
        stack.enter_context(
            quantized_weights(
                model, replace(plan, weights=tuple(w for n, w in weights.items() if n not in integers))
            )
        )
        sites = [item for item in plan.activations if item.grid.bits != FLOAT_BITS]
        stored = {id(model.get_parameter(name)): weight for name, weight in reversed(integers.items())}
        for module in model.modules():
            weight = stored.get(id(getattr(module, "weight", None)))  # tied modules share one
            if weight is not None:
                own = plan.weight_bases.get(weight.parameter)
                vars(module)["forward"] = _forward(module, weight, own, fusible=not sites)
                changed.append(module)
            if isinstance(module, nn.Dropout):  # a trace copies what it lets through, without :data:`READ`
                vars(module)["forward"] = _unchanged
                changed.append(module)
        functions = {item.tap: _activation(item, plan.site_bases.get(item.site), signed) for item in sites}
        stack.enter_context(tapped(model, functions))
        yield


def _unchanged(x: Tensor) -> Tensor:
    return x


def _activation(item: ActivationQuant, basis: Basis | None, signed: bool) -> TensorFunction:
    """Returns a function that puts a site's tensor on its grid, in a basis if it has one.

    The tensor carries what is read of it in the attribute :data:`READ`, for the Linears.
    """
    quantize = _quantizer(item, signed)

    def function(x: Tensor) -> Tensor:
        operand = quantize(x if basis is None else basis.forward(x))
        y = operand.values() if basis is None else basis.back(operand.values())
        setattr(y, READ, Read(operand=operand, basis=basis))
        return y

    return function


def _quantizer(item: ActivationQuant, signed: bool) -> Callable[[Tensor], Operand]:
    """Returns a function that puts a tensor on a site's grid, each group of channels on its own."""
    if isinstance(item.grid, DynamicGrid):
        return tokens(item.grid)
    scale, zero_point = item.parameters()
    if item.grid.unsigned:
        zeros = zero_point.to(torch.uint8)
    else:
        zeros = zero_point.to(torch.int8) if signed else (zero_point + MIDDLE).to(torch.uint8)
    if not item.groups:
        return lambda x: Whole(x=quantize_dequantize_linear(x, scale[0], zeros[0]))
    axis, channels = item.tap.axis, channels_by_group(item.groups)
    back = torch.cat(channels).argsort()

    def grouped(x: Tensor) -> Parts:
        parts = [
            quantize_dequantize_linear(x.index_select(axis, chosen), *at)
            for chosen, *at in zip(channels, scale, zeros, strict=True)
        ]
        return Parts(channels=channels, parts=parts, axis=axis, back=back)

    return grouped


def _forward(
    module: nn.Module, weight: WeightQuant, basis: Basis | None, fusible: bool
) -> Callable[[Tensor], Tensor]:
    """Returns a forward of the module that reads its weight from integers.

    ``fusible``: as a :class:`~quantlab.runtimes.operands.StoredWeight` has it.
    """
    value = module.weight
    assert isinstance(value, Tensor)
    based = value.data.cpu() if basis is None else basis.weight(value.data.cpu())
    q, scale, zero_point = signed_integers(based, weight)
    if weight.axis is None:
        scale, zero_point = scale[0], zero_point[0]
    elif weight.group is not None:
        scale, zero_point = (one.reshape(len(q), -1) for one in (scale, zero_point))
    if isinstance(module, nn.Linear):
        stored = StoredWeight.of(q, scale, zero_point, weight.group, fusible)
        return _linear(stored, basis, _bias(module, weight, basis))

    def back(rows: Tensor) -> Tensor:
        return rows if basis is None else basis.weight_back(rows)

    if isinstance(module, nn.Embedding):
        rows = _embedding(q, scale, zero_point, weight)
        return lambda ids: back(rows(ids))

    def forward(*inputs: Tensor) -> Tensor:
        try:
            vars(module)["weight"] = back(
                dequantized(q, scale, zero_point, weight.axis)
            )  # hides the parameter
            y: Tensor = type(module).forward(module, *inputs)
            return y
        finally:
            vars(module).pop("weight", None)

    return forward


def _bias(linear: nn.Linear, weight: WeightQuant, basis: Basis | None) -> Tensor | None:
    """What a Linear adds to its product, as :func:`~quantlab.engines.insert.quantized_weights` has it: the
    shift of the basis passes the weight that is not rounded where there is a bias, else the rounded one."""
    if basis is None or basis.shift is None:
        return linear.bias
    passed = linear.weight.data
    if linear.bias is None:
        passed = snap_weight(passed, weight, basis)
    bias = None if linear.bias is None else linear.bias.data
    return functional.linear(basis.shift.tensor.to(passed), passed, bias)


def _embedding(
    q: Tensor, scale: Tensor, zero_point: Tensor, weight: WeightQuant
) -> Callable[[Tensor], Tensor]:
    """Returns an Embedding's forward. It looks up integers; ranges of a row are looked up with them."""
    if weight.axis != 0:  # ranges of columns are along the last dimension of what is looked up
        axis = None if weight.axis is None else -1
        return lambda ids: dequantized(functional.embedding(ids, q), scale, zero_point, axis)
    shape = q.shape[1] // (weight.group or q.shape[1]), -1  # ranges of a row, elements of each
    scales, zeros = scale.reshape(len(q), -1), zero_point.float().reshape(len(q), -1)

    def forward(ids: Tensor) -> Tensor:
        whole = torch.unflatten(functional.embedding(ids, q).float(), -1, shape)
        return ((whole - zeros[ids].unsqueeze(-1)) * scales[ids].unsqueeze(-1)).flatten(-2)

    return forward


def _linear(stored: StoredWeight, basis: Basis | None, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Returns a Linear's forward: its stored weight is in the basis."""

    def forward(x: Tensor) -> Tensor:
        read: Read | None = getattr(x, READ, None)
        if read is not None and read.basis is basis:
            operand = read.operand
        else:
            operand = Whole(x=x if basis is None else basis.forward(x))
        y = operand.product(stored)
        return y if bias is None else y + bias

    return forward
