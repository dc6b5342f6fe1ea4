"""Runs Linears in integers where their input and their weight are on integer grids: the other half of
``insert``.

Which Linears these are shows in the run itself: a quantized tensor carries its integers, and a Linear that is
handed one multiplies them. A tensor that was changed on its way (sliced, added to) is another tensor, and
carries none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlab.engines.kernel_choice import fuses_gelu, product_of, times_fp32, why_no_kernel
from quantlab.kernels.products import BITS, IntegerTensor, IntegerWeight, OneDnn, Product
from quantlab.kernels.snapper import MIDDLE, Snapper
from quantlab.network.architecture import feed_forwards
from quantlab.network.attention import CountedQuantizer, TensorFunction
from quantlab.network.sites import Tap
from quantlab.plan.plan import WeightQuant, weight_ranges
from quantlab.quant.grid import AffineGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODED, GELU_ONTO = "_quantlab_encoded", "_quantlab_gelu_onto"

Groups = tuple[int, ...]  # of each channel; empty: all are in one


@dataclass(frozen=True)
class LinearExecution:
    """What a Linear ran on: the names of its kernels, or ``fp32`` and the reason."""

    on: str
    times_fp32: float | None = (
        None  # the kernel's time as a multiple of FP32's, as measured when it was chosen
    )

    @classmethod
    def fp32(cls, why: str) -> LinearExecution:
        """FP32, and why."""
        return cls(f"fp32: {why}")

    @property
    def in_integers(self) -> bool:
        return not self.on.startswith("fp32: ")


class EncodingQuantizer:
    """A site's quantizer whose results carry their integers, or what makes them, once for all that read them.

    With ``values`` false the result's own values stay as they were: nothing but an integer product reads
    them.
    """

    def __init__(self, snapper: Snapper, groups: Groups, values: bool):
        self.snapper, self.groups, self.values = snapper, groups, values
        self.wanted = not values  # from the first time on that a Linear asks
        self.channels = [channels.to(snapper.scale.device) for channels in channels_by_group(groups)]
        firsts = [int(channels[0]) for channels in self.channels] or [0]
        self.scales = [snapper.scale.flatten()[first].item() for first in firsts]
        self.zero_points = [int(snapper.byte_zero_point.flatten()[first]) for first in firsts]

    def __call__(self, x: Tensor) -> Tensor:
        if (encoded := getattr(x, ENCODED, None)) is not None and encoded.by is self:
            return x
        if self.wanted:
            snapped, integers = self.snapper.integers(x, self.values)
            if integers is None:  # NaN must go on as NaN
                return self.snapper(x)
            y, parts = x.detach() if snapped is None else snapped, self._parts(integers)
        else:
            y, parts = self.snapper(x), None
        setattr(y, ENCODED, _Encoded(self, parts))
        return y

    def encode(self, y: Tensor) -> list[IntegerTensor] | None:
        """The integers of a tensor that lies on the grid, group by group; None where it holds NaN."""
        self.wanted = True
        integers = self.snapper.integers(y, values=False)[1]
        return None if integers is None else self._parts(integers)

    def gelu(self, multiply: OneDnn, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        """GELU of a product as this would have it. The result has integers only: its own values are NaN."""
        onto = multiply.gelu(x, bias, self.snapper)
        y = torch.full((), torch.nan).expand(onto.integers.shape)
        setattr(y, ENCODED, _Encoded(self, [onto]))
        return y

    def _parts(self, integers: Tensor) -> list[IntegerTensor]:
        parts = [integers.index_select(-1, channels) for channels in self.channels] or [integers]
        return [
            IntegerTensor(integers=part, scale=scale, zero_point=zero_point)
            for part, scale, zero_point in zip(parts, self.scales, self.zero_points, strict=True)
        ]


@dataclass
class _Encoded:
    by: EncodingQuantizer
    parts: list[IntegerTensor] | None

    def integers(self, y: Tensor) -> list[IntegerTensor] | None:
        """What the tensor ``y``, which carries this, is in integers."""
        if self.parts is None:
            self.parts = self.by.encode(y)
        return self.parts


def channels_by_group(groups: Groups) -> list[Tensor]:
    """The channels of each group; none where there are no groups."""
    index = torch.tensor(groups)
    return [(index == group).nonzero().flatten() for group in range(max(groups, default=-1) + 1)]


def integer_weights(
    model: PreTrainedModel, weights: Iterable[WeightQuant]
) -> dict[str, IntegerWeight | LinearExecution]:
    """Every Linear's weight in integers, by path, or the reason why it has none. The model is in FP32."""
    planned = {weight.parameter: weight for weight in weights}
    linears = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear))
    return {path: _integers(linear.weight.data, planned.get(f"{path}.weight")) for path, linear in linears}


@contextmanager
def integer_linears(
    model: PreTrainedModel,
    weights: Mapping[str, IntegerWeight | LinearExecution],
    ran: dict[str, LinearExecution],
) -> Iterator[None]:
    """Inside, Linears multiply integers where their input carries them and ``weights`` has theirs.

    ``ran`` gets, for every Linear that ran, the kernel or the reason why it was FP32.
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
    """Inside, a Linear whose GELU nothing but the next product reads, in integers of one range, computes
    these at once: the widest tensor of a layer is never in memory."""
    from transformers.activations import GELUActivation

    found = []
    for chain in feed_forwards(model):
        activation, linear = model.get_submodule(chain.activation), model.get_submodule(chain.first)
        tap = functions.get(Tap(chain.second, "input"))
        onto = tap.function if isinstance(tap, CountedQuantizer) else None
        plain = isinstance(activation, GELUActivation) and activation.act is nn.functional.gelu
        only = isinstance(onto, EncodingQuantizer) and not onto.values and onto.snapper.numbers is not None
        if plain and only and Tap(chain.first, "output") not in functions:
            found.append((linear, activation, onto))
    try:
        for linear, activation, onto in found:
            setattr(linear, GELU_ONTO, onto)
            vars(activation)["forward"] = partial(_unless_done, type(activation).forward, activation)
        yield
    finally:
        for linear, activation, _ in found:
            delattr(linear, GELU_ONTO)
            vars(activation).pop("forward", None)


def _unless_done(forward: Callable[[nn.Module, Tensor], Tensor], activation: nn.Module, x: Tensor) -> Tensor:
    return x if hasattr(x, ENCODED) else forward(activation, x)


def _forward(
    linear: nn.Linear, weight: IntegerWeight | LinearExecution, report: Callable[[LinearExecution], None]
) -> Callable[[Tensor], Tensor]:
    ready: dict[Groups, list[Product]] = {}

    def forward(x: Tensor) -> Tensor:
        encoded: _Encoded | None = getattr(x, ENCODED, None)
        parts = None if isinstance(weight, LinearExecution) or encoded is None else encoded.integers(x)
        if isinstance(weight, LinearExecution) or encoded is None or parts is None:
            report(
                weight
                if isinstance(weight, LinearExecution)
                else LinearExecution.fp32("its input is not on an integer grid")
            )
            return nn.Linear.forward(linear, x)
        groups = encoded.by.groups
        if groups not in ready:
            ready[groups] = _products(weight, groups)
            report(_named(ready[groups], weight.scale.device))
        onto: EncodingQuantizer | None = getattr(linear, GELU_ONTO, None)
        first, *others = ready[groups]
        if onto is not None and not others and isinstance(first, OneDnn) and fuses_gelu(first, onto.snapper):
            return onto.gelu(first, parts[0], linear.bias)
        y = first(parts[0], linear.bias)
        for multiply, part in zip(others, parts[1:], strict=True):
            y += multiply(part, None)
        return y

    return forward


def _named(products: list[Product], device: torch.device) -> LinearExecution:
    kind, count = type(products[0]), len(products)  # one weight in parts: one kind
    kernel = kind.kernel(device)
    return LinearExecution(f"{count} x {kernel}" if count > 1 else kernel, times_fp32(kind, device))


def _products(weight: IntegerWeight, groups: Groups) -> list[Product]:
    return [product_of(weight.inputs(channels)) for channels in channels_by_group(groups)] or [
        product_of(weight)
    ]


def signed_integers(value: Tensor, weight: WeightQuant) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter's integers as signed bytes, with the scale and zero point of each of its ranges, shape
    (ranges,)."""
    assert isinstance(weight.grid, AffineGrid) and weight.grid.bits <= BITS
    bounds = (bound.to(value.device) for bound in weight_ranges(weight, value.ndim))
    scale, zero_point = weight.grid.parameters(*bounds)
    shift = 0 if weight.grid.symmetric else MIDDLE
    integers = (weight.grid.integers(value, scale, zero_point) - shift).to(torch.int8)
    return integers, scale.flatten(), (zero_point.flatten() - shift).to(torch.int8)


def _integers(value: Tensor, weight: WeightQuant | None) -> IntegerWeight | LinearExecution:
    if weight is None:
        return LinearExecution.fp32("its weight is not quantized")
    if not isinstance(weight.grid, AffineGrid) or weight.grid.bits > BITS:
        return LinearExecution.fp32(f"its weight is {weight.grid}")
    integers, scale, zero_point = signed_integers(value, weight)
    found = IntegerWeight(
        integers=integers,
        scale=scale.expand(len(value)).contiguous(),
        zero_point=zero_point.int().expand(len(value)).contiguous(),
    )
    why = why_no_kernel(found)
    return LinearExecution.fp32(why) if why else found
