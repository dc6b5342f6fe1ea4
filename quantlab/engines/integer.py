"""The integer engine: runs Linears in integers if their input and their weight are on integer grids.

Which Linears these are is found while the model runs. A site's quantizer attaches an encoding (the integers)
to its result, as an attribute of the tensor. A Linear whose input has an encoding multiplies the integers.
Operations (slicing, adding) return new tensors without the attribute, so a changed tensor is not mistaken for
a quantized one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlab.engines.kernel_choice import fuses_gelu, product_of, times_fp32, why_no_kernel
from quantlab.kernels.products import IntegerTensor, IntegerWeight, OneDnn, Product
from quantlab.kernels.snapper import MIDDLE, Snapper
from quantlab.network.architecture import feed_forwards
from quantlab.network.attention import CountedQuantizer, TensorFunction
from quantlab.network.taps import ModuleInput, ModuleOutput, Tap
from quantlab.plan.plan import QuantPlan, WeightQuant
from quantlab.quant.basis import Basis

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODING, GELU_ONTO = "_quantlab_encoding", "_quantlab_gelu_onto"

Groups = tuple[int, ...]  # the group index of each channel; empty: one group


@dataclass(frozen=True)
class LinearExecution:
    """What a Linear ran on: its kernel, or ``fp32: `` and the reason."""

    on: str
    times_fp32: float | None = None  # the kernel's time as a multiple of FP32's, measured when it was chosen

    @classmethod
    def fp32(cls, why: str) -> LinearExecution:
        """A run in FP32, and why."""
        return cls(f"fp32: {why}")

    @property
    def in_integers(self) -> bool:
        return not self.on.startswith("fp32: ")


class EncodingQuantizer:
    """Quantizes a site and attaches the encoding to the result, so that q, k and v encode it once.

    The integers are computed with the values once a Linear has asked for them (``wanted``), and on request
    before that. With ``values`` false the result keeps the input's values: only integer products read it.

    ``groups`` gives each channel's group. A group has its own scale and zero point, and its own integer
    product. With a ``basis`` the integers are of the tensor in that basis, and the values in the network's.
    """

    def __init__(self, snapper: Snapper, groups: Groups, values: bool, basis: Basis | None = None):
        self.snapper, self.groups, self.values, self.basis = snapper, groups, values, basis
        self.wanted = not values  # set by the first Linear that asks for integers
        self.channels = [channels.to(snapper.scale.device) for channels in channels_by_group(groups)]
        firsts = [int(channels[0]) for channels in self.channels] or [0]
        self.scales = [snapper.scale.flatten()[first].item() for first in firsts]
        self.zero_points = [int(snapper.byte_zero_point.flatten()[first]) for first in firsts]

    def __call__(self, x: Tensor) -> Tensor:
        if (encoding := getattr(x, ENCODING, None)) is not None and encoding.quantizer is self:
            return x
        based = x if self.basis is None else self.basis.forward(x)
        if self.wanted:
            snapped, integers = self.snapper.integers(based, self.values)
            if integers is None:  # x holds NaN, which must stay NaN
                return self._back(self.snapper(based))
            y, parts = x.detach() if snapped is None else self._back(snapped), self._parts(integers)
        else:
            y, parts = self._back(self.snapper(based)), None
        setattr(y, ENCODING, _Encoding(self, parts))
        return y

    def _back(self, snapped: Tensor) -> Tensor:
        return snapped if self.basis is None else self.basis.back(snapped)

    def encode(self, y: Tensor) -> list[IntegerTensor] | None:
        """The integers of a tensor that this quantizer made, group by group; None if it holds NaN."""
        self.wanted = True
        based = y if self.basis is None else self.basis.forward(y)
        integers = self.snapper.integers(based, values=False)[1]
        return None if integers is None else self._parts(integers)

    def gelu(self, multiply: OneDnn, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        """GELU of a product, quantized by this quantizer. The result has integers only: its values are
        NaN."""
        onto = multiply.gelu(x, bias, self.snapper)
        # One NaN, expanded to the shape, takes no memory and shows if a consumer ignores the encoding.
        y = torch.full((), torch.nan).expand(onto.integers.shape)
        setattr(y, ENCODING, _Encoding(self, [onto]))
        return y

    def _parts(self, integers: Tensor) -> list[IntegerTensor]:
        parts = [integers.index_select(-1, channels) for channels in self.channels] or [integers]
        return [
            IntegerTensor(integers=part, scale=scale, zero_point=zero_point)
            for part, scale, zero_point in zip(parts, self.scales, self.zero_points, strict=True)
        ]


@dataclass
class _Encoding:
    """The integers of a quantized tensor, group by group, and the quantizer that made them.

    ``parts`` is None until a Linear asks for the integers.
    """

    quantizer: EncodingQuantizer
    parts: list[IntegerTensor] | None

    def integers(self, y: Tensor) -> list[IntegerTensor] | None:
        """The integers of the tensor ``y`` that has this encoding; None if it holds NaN."""
        if self.parts is None:
            self.parts = self.quantizer.encode(y)
        return self.parts


def channels_by_group(groups: Groups) -> list[Tensor]:
    """The channels of each group; empty without groups."""
    index = torch.tensor(groups)
    return [(index == group).nonzero().flatten() for group in range(max(groups, default=-1) + 1)]


def integer_weights(model: PreTrainedModel, plan: QuantPlan) -> dict[str, IntegerWeight | LinearExecution]:
    """Every Linear's weight in integers, by path, or the reason why it runs in FP32.

    The model has its FP32 weights.
    """
    planned = {weight.parameter: weight for weight in plan.weights}
    linears = {
        f"{path}.weight": module for path, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    return {
        name.removesuffix(".weight"): _integers(plan.in_basis(name, linear.weight.data), planned.get(name))
        for name, linear in linears.items()
    }


@contextmanager
def integer_linears(
    model: PreTrainedModel,
    weights: Mapping[str, IntegerWeight | LinearExecution],
    ran: dict[str, LinearExecution],
) -> Iterator[None]:
    """Until the exit, Linears multiply integers if their input has an encoding and ``weights`` has theirs.

    Writes to ``ran``, by path, what every Linear ran on.
    """
    linears = {path: model.get_submodule(path) for path in weights}
    try:
        for path, linear in linears.items():
            assert isinstance(linear, nn.Linear)
            vars(linear)["forward"] = _forward(linear, weights[path], partial(ran.__setitem__, path))
        yield
    finally:
        for linear in linears.values():
            vars(linear).pop("forward", None)


@contextmanager
def fused_gelus(model: PreTrainedModel, functions: Mapping[Tap, TensorFunction]) -> Iterator[None]:
    """Until the exit, a Linear computes its GELU and the GELU's quantization in one kernel where it can.

    It can if only the next Linear reads the GELU, in integers with one range. The widest tensor of a layer is
    then never in memory. ``functions`` are the quantizers by tap.
    """
    from transformers.activations import GELUActivation

    fused = []
    for chain in feed_forwards(model):
        activation, linear = model.get_submodule(chain.activation), model.get_submodule(chain.first)
        tap = functions.get(ModuleInput(chain.second))
        onto = tap.function if isinstance(tap, CountedQuantizer) else None
        exact_gelu = isinstance(activation, GELUActivation) and activation.act is nn.functional.gelu
        one_range = (
            isinstance(onto, EncodingQuantizer) and onto.basis is None and onto.snapper.numbers is not None
        )
        integers_only = isinstance(onto, EncodingQuantizer) and not onto.values
        untapped = ModuleOutput(chain.first) not in functions
        if exact_gelu and one_range and integers_only and untapped:
            fused.append((linear, activation, onto))
    try:
        for linear, activation, onto in fused:
            setattr(linear, GELU_ONTO, onto)
            vars(activation)["forward"] = partial(_unless_done, type(activation).forward, activation)
        yield
    finally:
        for linear, activation, _ in fused:
            delattr(linear, GELU_ONTO)
            vars(activation).pop("forward", None)


def _unless_done(forward: Callable[[nn.Module, Tensor], Tensor], activation: nn.Module, x: Tensor) -> Tensor:
    """The activation's forward, which does nothing if the Linear before has computed it."""
    return x if hasattr(x, ENCODING) else forward(activation, x)


def _forward(
    linear: nn.Linear, weight: IntegerWeight | LinearExecution, report: Callable[[LinearExecution], None]
) -> Callable[[Tensor], Tensor]:
    """A Linear's forward in integers. Products are prepared once for each grouping of the input's channels.

    ``report`` receives what the Linear ran on.
    """
    ready: dict[Groups, list[Product]] = {}

    def forward(x: Tensor) -> Tensor:
        if isinstance(weight, LinearExecution):
            report(weight)
            return nn.Linear.forward(linear, x)
        encoding: _Encoding | None = getattr(x, ENCODING, None)
        parts = None if encoding is None else encoding.integers(x)
        if encoding is None or parts is None:
            report(LinearExecution.fp32("its input is not on an integer grid"))
            return nn.Linear.forward(linear, x)
        groups, basis = encoding.quantizer.groups, encoding.quantizer.basis
        if groups not in ready:
            ready[groups] = _products(weight, groups)
            report(_named(ready[groups], weight.scale.device))
        bias: Tensor | None = linear.bias
        if basis is not None and basis.shift is not None:
            bias = nn.functional.linear(basis.shift.tensor.to(linear.weight), linear.weight, bias)
        onto: EncodingQuantizer | None = getattr(linear, GELU_ONTO, None)
        first, *others = ready[groups]
        if onto is not None and not others and isinstance(first, OneDnn) and fuses_gelu(first, onto.snapper):
            return onto.gelu(first, parts[0], bias)
        y = first(parts[0], bias)
        for multiply, part in zip(others, parts[1:], strict=True):
            y += multiply(part, None)
        return y

    return forward


def _named(products: list[Product], device: torch.device) -> LinearExecution:
    kind, count = type(products[0]), len(products)  # all parts of a weight use one kind of kernel
    kernel = kind.kernel(device)
    return LinearExecution(f"{count} x {kernel}" if count > 1 else kernel, times_fp32(kind, device))


def _products(weight: IntegerWeight, groups: Groups) -> list[Product]:
    return [product_of(weight.inputs(channels)) for channels in channels_by_group(groups)] or [
        product_of(weight)
    ]


def signed_integers(value: Tensor, weight: WeightQuant) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter's integers as signed bytes, and the scale and zero point of each range, shape (ranges,).

    Unsigned integers of asymmetric grids are shifted by 128 to fit into signed bytes.
    """
    scale, zero_point = weight.parameters(value)
    shift = MIDDLE if weight.grid.unsigned else 0
    integers = (weight.rounded(value) - shift).to(torch.int8)
    return integers, scale.flatten(), (zero_point.flatten() - shift).to(torch.int8)


def _integers(value: Tensor, weight: WeightQuant | None) -> IntegerWeight | LinearExecution:
    if weight is None:
        return LinearExecution.fp32("its weight is not quantized")
    if not weight.grid.in_bytes:
        return LinearExecution.fp32(f"its weight is {weight.grid}")
    if weight.group is not None:
        return LinearExecution.fp32(f"its weight has a range for every {weight.group} inputs")
    integers, scale, zero_point = signed_integers(value, weight)
    integer_weight = IntegerWeight(
        integers=integers,
        scale=scale.expand(len(value)).contiguous(),
        zero_point=zero_point.int().expand(len(value)).contiguous(),
    )
    why = why_no_kernel(integer_weight)
    return LinearExecution.fp32(why) if why else integer_weight
