"""Exports a plan's model to ONNX: float operators between QuantizeLinear and DequantizeLinear.

Runtimes turn ``MatMul(DequantizeLinear(x), DequantizeLinear(w))`` into integer products. Activations of 8
bits are unsigned bytes; symmetric ones have zero point 128, where ONNX's grid has one level more than
quantlab's (-128). A site with groups is split into them, each with one range, so that its products run in
integers too.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantlab.engines.insert import activation_parameters, quantized_weights
from quantlab.engines.integer import channels_by_group, signed_integers
from quantlab.kernels.snapper import MIDDLE
from quantlab.network.attention import TensorFunction
from quantlab.network.taps import tapped
from quantlab.plan.fit import check_fits
from quantlab.plan.plan import ActivationQuant, QuantPlan, WeightQuant
from quantlab.quant.grid import AffineGrid

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
FLOAT_BITS, WEIGHT_BITS = 16, 8
DYNAMIC = ("batch", "tokens")  # the first two dimensions of each input
TRACED_ROWS, TRACED_TOKENS = 2, 3
EXTERNAL_BYTES = 1_800_000_000  # larger weights go into a file of their own: protobuf holds 2 GB
GROUPED = "_quantlab_grouped"  # attribute of a tensor: pairs of a group's channels and its part


def check_exportable(plan: QuantPlan) -> None:
    """Raises ValueError, naming sites and a remedy, if ONNX has no integers of a grid's width."""
    unsupported = [item for item in plan.activations if item.grid.bits not in (8, FLOAT_BITS)]
    if unsupported:
        names = ", ".join(f"{item.site} ({item.grid})" for item in unsupported[:3]) + (
            ", ..." if len(unsupported) > 3 else ""
        )
        raise ValueError(
            f"{len(unsupported)} sites have no integer equivalent in ONNX: {names}. Runtimes multiply 8-bit "
            f"activations: use bits.activations=8, or keep them in 16 bits: "
            f"bits.rules=[{{match: '{unsupported[0].site}', bits: fp16}}]"
        )


def export_onnx(
    model: PreTrainedModel,
    plan: QuantPlan,
    names: Collection[str],
    path: Path,
    notes: Mapping[str, str],
    signed: bool = False,
) -> None:
    """Writes the quantized model to ``path``, for batches of any number of rows and tokens.

    ``names`` are the tokenizer's inputs; those in :data:`INPUTS` become the file's inputs. ``notes`` go into
    the file's metadata. ``signed`` writes activations of symmetric grids as signed bytes instead of unsigned
    ones with zero point 128: each runtime is fast with one of them.

    Raises ValueError if the plan has no equivalent in ONNX or is another model's, or if the written file
    fixes the number of rows or tokens.
    """
    check_exportable(plan)
    check_fits(model, plan)
    inputs = {name: values for name, values in traced_inputs().items() if name in names}
    dynamic = {name: dict(enumerate(map(torch.export.Dim, DYNAMIC))) for name in inputs}
    with quantize_dequantize(model, plan, signed), _quietly():
        program = torch.onnx.export(
            _Logits(model).eval(),
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=dynamic,
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(notes)
    _give_weights_their_own_zero_points(program.model.graph)
    large = sum(value.numel() * value.element_size() for value in model.parameters()) > EXTERNAL_BYTES
    program.save(path, external_data=large)
    check_dynamic(path)


def _give_weights_their_own_zero_points(graph: ir.Graph) -> None:
    """Undoes the exporter's sharing of equal constants, for the zero points of weights.

    Without VNNI, ONNX Runtime makes signed weights and their zero points unsigned. It fails if two weights
    share a zero point.
    """
    import onnx_ir as ir

    for number, node in enumerate(graph):
        if node.op_type != "DequantizeLinear":
            continue
        quantized, _, shared = node.inputs
        assert quantized is not None and shared is not None
        if quantized.name in graph.initializers:
            own = ir.Value(
                name=f"{shared.name}_{number}",
                type=shared.type,
                shape=shared.shape,
                const_value=shared.const_value,
            )
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def traced_inputs() -> dict[str, Tensor]:
    """Returns the batch that the exporter traces: (:data:`TRACED_ROWS`, :data:`TRACED_TOKENS`), with padding.

    A real batch may not do: the exporter takes a size of 1 for a constant, and drops a mask without padding.
    """
    ids = torch.ones(TRACED_ROWS, TRACED_TOKENS, dtype=torch.long)
    mask = ids.clone()
    mask[-1, -1] = 0
    return dict(zip(INPUTS, (ids, mask, torch.zeros_like(ids)), strict=True))


def check_dynamic(path: Path) -> None:
    """Raises ValueError if a file's inputs fix the number of rows or tokens, or its outputs that of rows."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    fixed = []
    for values, expected in ((graph.input, DYNAMIC), (graph.output, DYNAMIC[:1])):
        for value in values:
            shape = [
                dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
            ]
            if shape[: len(expected)] != list(expected):
                fixed.append(f"{value.name} is {tuple(shape)}, not ({', '.join(expected)}, ...)")
    if fixed:
        raise ValueError(f"the exported file takes batches of one shape only: {'; '.join(fixed)}")


@contextmanager
def quantize_dequantize(model: PreTrainedModel, plan: QuantPlan, signed: bool = False) -> Iterator[None]:
    """Makes a trace of the model contain ONNX's quantization operators, until the exit.

    The operators only stand for the computation: the model computes no useful values meanwhile.
    """
    weights = {weight.parameter: weight for weight in plan.weights}
    integers = {
        name: weight
        for name, weight in weights.items()
        if isinstance(weight.grid, AffineGrid) and weight.grid.bits <= WEIGHT_BITS
    }
    changed: list[nn.Module] = []
    with ExitStack() as stack:
        stack.callback(lambda: [vars(module).pop("forward", None) for module in changed])
        stack.enter_context(
            quantized_weights(model, [w for name, w in weights.items() if name not in integers])
        )
        for path, module in model.named_modules():
            weight = integers.get(f"{path}.weight")
            if weight is not None:
                vars(module)["forward"] = _forward(module, weight)
                changed.append(module)
        sites = (item for item in plan.activations if item.grid.bits != FLOAT_BITS)
        stack.enter_context(tapped(model, {item.tap: _activation(item, signed) for item in sites}))
        yield


class _Logits(nn.Module):
    """A model whose forward takes the file's inputs and returns the logits alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        logits: Tensor = self.model(
            **{name: value for name, value in given.items() if value is not None}
        ).logits
        return logits


def _activation(item: ActivationQuant, signed: bool) -> TensorFunction:
    """Returns a function that puts a site's tensor on its grid, each group of channels on its own.

    A tensor with groups carries them in the attribute :data:`GROUPED`, for the Linears that read it.
    """
    assert isinstance(item.grid, AffineGrid)
    scale, zero_point = activation_parameters(item, item.grid)
    if item.grid.symmetric:
        zeros = zero_point.to(torch.int8) if signed else (zero_point + MIDDLE).to(torch.uint8)
    else:
        zeros = zero_point.to(torch.uint8)
    if not item.groups:
        return lambda x: _qdq(x, scale[0], zeros[0])
    axis = 1 if item.tap.at in ("scores", "probs") else -1
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
        # An embedding's ranges are of its columns, the last dimension of what is looked up.
        axis = None if weight.axis is None else -1
        return lambda ids: _dequantized(functional.embedding(ids, q), scale, zero_point, axis)
    assert isinstance(module, nn.LayerNorm)
    shape, bias, eps = module.normalized_shape, module.bias, module.eps
    return lambda x: functional.layer_norm(x, shape, _dequantized(q, scale, zero_point, None), bias, eps)


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


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the exporter: it logs its steps, warns of its own code and of torchvision missing."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
