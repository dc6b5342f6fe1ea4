"""Exports a plan's model to ONNX: the trace of :mod:`quantlab.runtimes.qdq` as a file for any batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab.plan.fit import check_fits
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.grid import BYTE_BITS
from quantlab.runtimes.qdq import FLOAT_BITS, quantize_dequantize

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel

TOKENS, PIXELS = ("input_ids", "attention_mask", "token_type_ids"), "pixel_values"
DYNAMIC = {PIXELS: ("batch",), **dict.fromkeys(TOKENS, ("batch", "tokens"))}  # first dimensions of each input
ZERO_POINTS = {"DequantizeLinear": (0, 2), "MatMulInteger": (1, 3)}  # indices of weight and zero point
TRACED_ROWS, TRACED_TOKENS = 2, 3
OPSET, OPSET_OF_GROUPS = 20, 21  # the first that has scales for groups of a weight's inputs
EXTERNAL_BYTES = 1_800_000_000  # larger weights go into a file of their own: protobuf holds 2 GB


def check_exportable(plan: QuantPlan) -> None:
    """Raises ValueError, naming sites and a remedy, if ONNX has no integers of a grid's width."""
    for item in plan.activations:
        if item.split is not None or item.group_bits:
            what = item.split or "bits of its own for each group"
            raise ValueError(f"ONNX files have no such quantizer as {item.site} has: {what}")
    for weight in plan.weights:
        if weight.wide:
            raise ValueError(f"ONNX files have no columns in FP16, as {weight.parameter} has: split=none")
    unsupported = [item for item in plan.activations if not _has_integers(item)]
    if unsupported:
        names = ", ".join(f"{item.site} ({item.grid})" for item in unsupported[:3]) + (
            ", ..." if len(unsupported) > 3 else ""
        )
        raise ValueError(
            f"{len(unsupported)} sites have no integer equivalent in ONNX: {names}. Runtimes multiply 8-bit "
            f"activations: use bits.activations=8, or keep them in 16 bits: "
            f"bits.rules=[{{match: '{unsupported[0].site}', bits: fp16}}]"
        )


def _has_integers(item: ActivationQuant) -> bool:
    """Whether a site's grid is a byte's, stays in float, or is computed for every token in up to a byte."""
    grid = item.grid
    static = grid.in_bytes and grid.bits == BYTE_BITS
    return static or grid.bits == FLOAT_BITS or (grid.per_token and grid.bits <= BYTE_BITS)


def export_onnx(
    model: PreTrainedModel,
    plan: QuantPlan,
    inputs: Mapping[str, Tensor],
    path: Path,
    notes: Mapping[str, str],
    signed: bool = False,
) -> None:
    """Writes the quantized model to ``path``, for batches of any number of rows and tokens.

    ``inputs`` is any batch of the trial: its names that are in :data:`DYNAMIC` become the file's inputs, and
    images keep its size. The file answers ``logits``: a decoder's are (batch, tokens, words), and it has no
    cache. ``notes`` go into the file's metadata. ``signed`` writes activations of symmetric grids as signed
    bytes instead of unsigned ones with zero point 128: each runtime is fast with one of them.

    Raises ValueError if the plan has no equivalent in ONNX or is another model's, or if the written file
    fixes the number of rows or tokens.
    """
    check_exportable(plan)
    check_fits(model, plan)
    traced = traced_inputs(inputs)
    dynamic = {name: dict(enumerate(map(torch.export.Dim, DYNAMIC[name]))) for name in traced}
    with quantize_dequantize(model, plan, signed), _quietly():
        program = torch.onnx.export(
            _Logits(model).eval(),
            (),
            kwargs=traced,
            dynamo=True,
            dynamic_shapes=dynamic,
            output_names=["logits"],
            opset_version=OPSET_OF_GROUPS if any(weight.group for weight in plan.weights) else OPSET,
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
        if node.op_type not in ZERO_POINTS:
            continue
        of_weight, of_zero_point = ZERO_POINTS[node.op_type]
        quantized, shared = node.inputs[of_weight], node.inputs[of_zero_point]
        assert quantized is not None and shared is not None
        if quantized.name in graph.initializers:
            own = ir.Value(
                name=f"{shared.name}_{number}",
                type=shared.type,
                shape=shared.shape,
                const_value=shared.const_value,
            )
            graph.register_initializer(own)
            node.replace_input_with(of_zero_point, own)


def traced_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a batch like ``inputs`` that the exporter traces: (:data:`TRACED_ROWS`, :data:`TRACED_TOKENS`)
    with padding, or as many images.

    A real batch may not do: the exporter takes a size of 1 for a constant, and drops a mask without padding.
    """
    ids = torch.ones(TRACED_ROWS, TRACED_TOKENS, dtype=torch.long)
    mask = ids.clone()
    mask[-1, -1] = 0
    traced = dict(zip(TOKENS, (ids, mask, torch.zeros_like(ids)), strict=True))
    if PIXELS in inputs:
        traced[PIXELS] = torch.zeros(TRACED_ROWS, *inputs[PIXELS].shape[1:])
    return {name: traced[name] for name in traced if name in inputs}


def check_dynamic(path: Path) -> None:
    """Raises ValueError if a file's inputs fix the number of rows or tokens, or its outputs that of rows."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    fixed = []
    for value in [*graph.input, *graph.output]:
        expected = DYNAMIC.get(value.name, ("batch",))
        shape = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        if shape[: len(expected)] != expected:
            fixed.append(f"{value.name} is {shape}, not ({', '.join(expected)}, ...)")
    if fixed:
        raise ValueError(f"the exported file takes batches of one shape only: {'; '.join(fixed)}")


class _Logits(nn.Module):
    """A model whose forward takes the file's inputs and returns the logits alone, without a cache."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.fixed = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        given: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            PIXELS: pixel_values,
        }
        inputs = {name: value for name, value in given.items() if value is not None}
        logits: Tensor = self.model(**inputs, **self.fixed).logits
        return logits


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
