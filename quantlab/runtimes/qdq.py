"""What a plan's model is in ONNX: float operators between QuantizeLinear and DequantizeLinear.

Runtimes turn ``MatMul(DequantizeLinear(x), DequantizeLinear(w))`` into integer products. Activations of 8
bits are unsigned bytes; symmetric ones have zero point 128, where ONNX's grid has one level more than
quantlab's (-128). A site with groups is split into them, each with one range, so that its products run in
integers too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantlab.engines.encodings import channels_by_group
from quantlab.engines.insert import quantized_weights
from quantlab.engines.integer import signed_integers
from quantlab.kernels.snapper import MIDDLE
from quantlab.network.attention import TensorFunction
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT_BITS = 16
GROUPED = "_quantlab_grouped"  # attribute of a tensor: pairs of a group's channels and its part


@contextmanager
def quantize_dequantize(model: PreTrainedModel, plan: QuantPlan, signed: bool = False) -> Iterator[None]:
    """Makes a trace of the model contain ONNX's quantization operators, until the exit.

    The operators only stand for the computation: the model computes no useful values meanwhile.
    """
    weights = {weight.parameter: weight for weight in plan.weights}
    integers = {name: weight for name, weight in weights.items() if weight.grid.in_bytes}
    changed: list[nn.Module] = []
    with ExitStack() as stack:
        stack.callback(lambda: [vars(module).pop("forward", None) for module in changed])
        stack.enter_context(
            quantized_weights(
                model, replace(plan, weights=tuple(w for n, w in weights.items() if n not in integers))
            )
        )
        stored = {id(model.get_parameter(name)): weight for name, weight in integers.items()}
        for module in model.modules():
            weight = stored.get(id(getattr(module, "weight", None)))  # tied modules share one
            if weight is not None:
                vars(module)["forward"] = _forward(module, weight)
                changed.append(module)
        sites = (item for item in plan.activations if item.grid.bits != FLOAT_BITS)
        stack.enter_context(tapped(model, {item.tap: _activation(item, signed) for item in sites}))
        yield


def _activation(item: ActivationQuant, signed: bool) -> TensorFunction:
    """Returns a function that puts a site's tensor on its grid, each group of channels on its own.

    A tensor with groups carries them in the attribute :data:`GROUPED`, for the Linears that read it.
    """
    scale, zero_point = item.parameters()
    if item.grid.unsigned:
        zeros = zero_point.to(torch.uint8)
    else:
        zeros = zero_point.to(torch.int8) if signed else (zero_point + MIDDLE).to(torch.uint8)
    if not item.groups:
        return lambda x: _qdq(x, scale[0], zeros[0])
    axis = item.tap.axis
    channels = channels_by_group(item.groups)
    back = torch.cat(channels).argsort()

    def grouped(x: Tensor) -> Tensor:
        parts = [
            _qdq(x.index_select(axis, chosen), *at)
            for chosen, *at in zip(channels, scale, zeros, strict=True)
        ]
        y = torch.cat(parts, axis).index_select(axis, back)
        setattr(y, GROUPED, list(zip(channels, parts, strict=True)))
        return y

    return grouped


def _forward(module: nn.Module, weight: WeightQuant) -> Callable[[Tensor], Tensor]:
    """Returns a forward of the module that reads its weight from integers."""
    value = module.weight
    assert isinstance(value, Tensor)
    q, scale, zero_point = signed_integers(value.data.cpu(), weight)
    if weight.axis is None:
        scale, zero_point = scale[0], zero_point[0]
    if isinstance(module, nn.Linear):
        return _linear(module, q.t().contiguous(), scale, zero_point, weight.axis)
    if isinstance(module, nn.Embedding):
        return _embedding(q, scale, zero_point, weight.axis)

    def forward(*inputs: Tensor) -> Tensor:
        try:
            vars(module)["weight"] = _dequantized(q, scale, zero_point, weight.axis)  # hides the parameter
            y: Tensor = type(module).forward(module, *inputs)
            return y
        finally:
            vars(module).pop("weight", None)

    return forward


def _embedding(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Callable[[Tensor], Tensor]:
    """Returns an Embedding's forward. It looks up integers; a range for each row is looked up with them."""
    if axis == 0:
        zeros = zero_point.float()
        return lambda ids: (
            (functional.embedding(ids, q).float() - zeros[ids].unsqueeze(-1)) * scale[ids].unsqueeze(-1)
        )
    # Ranges of columns are along the last dimension of what is looked up.
    return lambda ids: _dequantized(
        functional.embedding(ids, q), scale, zero_point, None if axis is None else -1
    )


def _linear(
    linear: nn.Linear, q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None
) -> Callable[[Tensor], Tensor]:
    """Returns a Linear's forward: one product, or one for each group of the input's channels.

    A runtime's integer product has one scale for its whole input, so each group needs a product of its own.
    """

    def product(x: Tensor, integers: Tensor) -> Tensor:
        weight = _dequantized(integers, scale, zero_point, None if axis is None else 1)
        # A product of two dimensions would become a Gemm, which runs in integers only with an integer bias.
        return torch.matmul(x.unsqueeze(1), weight).squeeze(1) if x.ndim == 2 else torch.matmul(x, weight)

    def forward(x: Tensor) -> Tensor:
        parts: list[tuple[Tensor, Tensor]] = getattr(x, GROUPED, [])
        y = sum(product(part, q[channels]) for channels, part in parts) if parts else product(x, q)
        return y if linear.bias is None else y + linear.bias

    return forward


def _qdq(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Writes QuantizeLinear and DequantizeLinear into the trace."""
    q = torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero_point), dtype=zero_point.dtype, shape=x.shape
    )
    return _dequantized(q, scale, zero_point, None)


def _dequantized(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Writes DequantizeLinear into the trace. ``axis`` is that of the scales; None for a single scale."""
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    y: Tensor = torch.onnx.ops.symbolic(
        "DequantizeLinear", (q, scale, zero_point), attributes, dtype=torch.float32, shape=q.shape
    )
    return y
