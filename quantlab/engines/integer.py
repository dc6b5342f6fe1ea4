"""The integer engine: runs Linears in integers if their input and their weight are on integer grids.

Which Linears these are is found while the model runs. A site's quantizer attaches an encoding (the integers)
to its result, as an attribute of the tensor. A Linear whose input has an encoding multiplies the integers.
Operations (slicing, adding) return new tensors without the attribute, so a changed tensor is not mistaken for
a quantized one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlab.engines.encoders import ENCODING, Encoding, EncodingQuantizer
from quantlab.engines.encodings import (
    ByGroup,
    Groups,
    PreparedWeight,
    WithWideColumns,
    channels_by_group,
)
from quantlab.engines.kernel_choice import fuses_gelu, product_of, times_fp32, why_no_kernel
from quantlab.engines.wide import FloatForward
from quantlab.kernels.products import GeluProduct, IntegerWeight, Product
from quantlab.kernels.snapper import MIDDLE
from quantlab.network.architecture import all_sites, feed_forwards
from quantlab.network.attention import CountedQuantizer, TensorFunction
from quantlab.network.taps import ModuleInput, ModuleOutput, Tap
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import WeightQuant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GELU_ONTO = "_quantlab_gelu_onto"
READS = "_quantlab_reads"


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


def integer_weights(model: PreTrainedModel, plan: QuantPlan) -> dict[str, IntegerWeight | LinearExecution]:
    """Every Linear's weight in integers, by path, or the reason why it runs in FP32.

    The model has its FP32 weights. A weight that is tied to an embedding is planned under that one's name.
    """
    planned = {id(model.get_parameter(weight.parameter)): weight for weight in plan.weights}
    return {
        path: _integers(plan, linear.weight, planned.get(id(linear.weight)))
        for path, linear in model.named_modules()
        if isinstance(linear, nn.Linear)
    }


@contextmanager
def integer_linears(
    model: PreTrainedModel,
    weights: Mapping[str, IntegerWeight | LinearExecution],
    ran: dict[str, LinearExecution],
    floats: Mapping[str, FloatForward],
) -> Iterator[None]:
    """Until the exit, Linears multiply integers if their input has an encoding and ``weights`` has theirs.

    ``floats`` are the forwards in FP32 of Linears whose weight is quantized. Writes to ``ran``, by path, what
    every Linear ran on.
    """
    linears = {path: model.get_submodule(path) for path in weights}
    try:
        for path, linear in linears.items():
            assert isinstance(linear, nn.Linear)
            vars(linear)["forward"] = _forward(
                linear, weights[path], partial(ran.__setitem__, path), floats.get(path)
            )
        yield
    finally:
        for linear in linears.values():
            vars(linear).pop("forward", None)


@contextmanager
def heads_on_grids(model: PreTrainedModel, functions: Mapping[Tap, TensorFunction]) -> Iterator[None]:
    """Until the exit, a Linear that reads a part of a site's tensor multiplies integers too.

    A decoder's head reads some tokens of the last norm's output: a new tensor, without its encoding. All of
    its values are on the site's grid, so quantizing them again gives their integers. ``functions`` are the
    quantizers by tap.
    """
    heads = []
    for site in all_sites(model):
        tap, at = functions.get(site.made_at) if site.made_at else None, site.read_at
        made_by = tap.function if isinstance(tap, CountedQuantizer) else None
        if isinstance(made_by, EncodingQuantizer) and made_by.basis is None and isinstance(at, ModuleInput):
            heads.append((model.get_submodule(at.module), made_by))
    try:
        for head, made_by in heads:
            setattr(head, READS, made_by)
        yield
    finally:
        for head, _ in heads:
            vars(head).pop(READS, None)


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
    linear: nn.Linear,
    weight: IntegerWeight | LinearExecution,
    report: Callable[[LinearExecution], None],
    in_float: FloatForward | None,
) -> Callable[[Tensor], Tensor]:
    """A Linear's forward in integers. Products are prepared once for each grouping of the input's channels.

    ``report`` receives what the Linear ran on.
    """
    ready: dict[Groups, PreparedWeight] = {}
    in_fp32 = partial(nn.Linear.forward, linear) if in_float is None else in_float
    original = None if in_float is None else in_float.original_in_basis

    def forward(x: Tensor) -> Tensor:
        if isinstance(weight, LinearExecution):
            report(weight)
            return in_fp32(x)
        encoding: Encoding | None = getattr(x, ENCODING, None)
        made_by: EncodingQuantizer | None = getattr(linear, READS, None)
        if encoding is None and made_by is not None:
            encoding = Encoding(made_by, made_by.quantize(x, values=False, integers=True)[1])
        integers = None if encoding is None else encoding.of(x)
        if encoding is None or integers is None:
            report(LinearExecution.fp32("its input is not on an integer grid"))
            return in_fp32(x)
        if isinstance(integers, WithWideColumns) and original is None:
            report(LinearExecution.fp32("its input has wide columns and its weight is tied"))
            return in_fp32(x)
        groups, basis = integers.groups, encoding.encoder.basis
        if groups not in ready:
            ready[groups] = PreparedWeight(
                products=_products(weight, groups), weight=weight, original=original
            )
            report(_named(ready[groups].products, integers.how, weight.scale.device))
        bias: Tensor | None = linear.bias
        if basis is not None and basis.shift is not None:
            bias = nn.functional.linear(basis.shift.tensor.to(linear.weight), linear.weight, bias)
        onto: EncodingQuantizer | None = getattr(linear, GELU_ONTO, None)
        if onto is not None and isinstance(integers, ByGroup) and not groups:
            product = ready[groups].products[0]
            if isinstance(product, GeluProduct) and fuses_gelu(product, onto.snapper):
                return onto.gelu(product, integers.parts[0], bias)
        return integers.multiply(ready[groups], bias)

    return forward


def _named(products: Sequence[Product], how: str, device: torch.device) -> LinearExecution:
    kind, count = type(products[0]), len(products)  # all parts of a weight use one kind of kernel
    kernel = f"{kind.kernel(device)}{how}"
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


def _integers(
    plan: QuantPlan, parameter: Tensor, weight: WeightQuant | None
) -> IntegerWeight | LinearExecution:
    if weight is None:
        return LinearExecution.fp32("its weight is not quantized")
    value = plan.in_basis(weight.parameter, parameter.data)
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
