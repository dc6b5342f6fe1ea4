"""Exported files: what they hold, what ONNX Runtime answers with them, and that the model is as it was."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import (
    CASES,
    EACH_QUANTIZED,
    GROUPS,
    NOTES,
    QUANTIZED,
    ROWS,
    XHY,
    Exported,
    all_of,
    exported,
    part,
    planned,
    run,
)
from tiny import ALL, logits, tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from quantlab.engines import kernel_choice
from quantlab.engines.insert import insert, snap_weight
from quantlab.methods.method import Method
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.plan.fit import check_fits
from quantlab.plan.plan import QuantPlan
from quantlab.quant.grid import AffineGrid
from quantlab.runtimes import onnx_file
from quantlab.runtimes.onnx_file import check_exportable, export_onnx
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.qdq import quantize_dequantize
from quantlab.runtimes.runtime import check_onnx, planned_products

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[onnx]'")

every_plan = pytest.mark.parametrize("made", EACH_QUANTIZED, indirect=True)


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Exported:
    return exported(request.param)


class File:
    """An ONNX file's constants and nodes."""

    def __init__(self, path: Path):
        model = onnx.load(str(path))
        self.inputs = [value.name for value in model.graph.input]
        self.notes = {entry.key: entry.value for entry in model.metadata_props}
        self.nodes = list(model.graph.node)
        self.constants = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
        made_by = {output: node for node in self.nodes for output in node.output}
        assert not any(
            node.op_type == "Constant" for node in self.nodes
        )  # or they would have to be looked at too
        gathered = {name: node.input[0] for name, node in made_by.items() if node.op_type == "Gather"}
        self.stored = {  # an embedding's rows are looked up first
            gathered.get(node.input[0], node.input[0]): node for node in self.of("DequantizeLinear")
        }

    def of(self, kind: str) -> list["onnx.NodeProto"]:
        return [node for node in self.nodes if node.op_type == kind]

    def weights(self) -> Iterator[np.ndarray]:
        """What the stored integers stand for. Where they have several scales, these are along the last
        axis."""
        for name, node in self.stored.items():
            if name in self.constants:
                q, scale, zero_point = (self.constants[key] for key in (name, *node.input[1:]))
                assert q.dtype == zero_point.dtype == np.int8
                yield (q.astype(np.float32) - zero_point) * scale


@every_plan
def test_a_valid_model_with_its_notes(made: Exported) -> None:
    check_onnx(made.path)
    file = File(made.path)
    assert file.inputs == ["input_ids", "attention_mask"]
    assert NOTES.items() <= file.notes.items()


@every_plan
def test_any_batch_of_any_length(made: Exported) -> None:
    """The same rows in other company give the answers that they give among all."""
    session = as_it_stands(made.path)
    answers = run(session, ROWS)
    for rows, tokens in [
        ([0], 1),
        ([0] * 7, 1),
        ([2], 3),
        ([0, 2, 1, 2, 2], 3),
        ([*range(10, 17)], 17),
        ([63], 64),
    ]:
        torch.testing.assert_close(run(session, part(rows, tokens)), answers[rows], rtol=0, atol=0.05)


@pytest.mark.slow
def test_a_file_that_fixes_a_dimension_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter takes a size of 1 for a constant, whatever is asked of it."""
    monkeypatch.setattr(onnx_file, "TRACED_ROWS", 1)
    model = tiny_model(layers=1)
    message = (
        r"of one shape only: input_ids is \(1, 'tokens'\), not \(batch, tokens, \.\.\.\); "
        r".*logits is \(1, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        export_onnx(model, planned(model, ALL, Uniform()), ROWS.inputs, tmp_path / "model.onnx", {})


@every_plan
def test_the_operators_mean_the_simulation(made: Exported) -> None:
    """As they stand, not as a runtime fuses them. Float sums are in another order there, so that a value
    between two levels takes the other one now and then: few rows differ, and by little."""
    answers = run(as_it_stands(made.path), ROWS)
    worst = (answers - made.simulated).abs().amax(1) / made.simulated.abs().max()
    assert (worst < 1e-5).float().mean() > 0.9
    assert worst.max() < 0.1


def as_it_stands(path: Path) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """ONNX Runtime without optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], dict(inputs))[0]


@every_plan
def test_every_range_is_the_plan_s(made: Exported) -> None:
    expected: Counter[tuple[float, int]] = Counter()
    for item in made.plan.activations:
        if isinstance(item.grid, AffineGrid):
            scale, zero_point = item.parameters()
            middle = 128 if item.grid.symmetric else 0
            expected.update((float(s), int(z) + middle) for s, z in zip(scale, zero_point, strict=True))
    file = File(made.path)
    parameters = [
        tuple(file.constants[name] for name in node.input[1:]) for node in file.of("QuantizeLinear")
    ]
    assert all(zero_point.dtype == np.uint8 for _, zero_point in parameters)
    assert Counter((float(scale), int(zero_point)) for scale, zero_point in parameters) == expected


@every_plan
def test_weights_are_stored_as_integers_and_not_in_fp32_too(made: Exported) -> None:
    file, expected, floats = File(made.path), [], set()
    for item in made.plan.weights:
        value = made.model.get_parameter(item.parameter)
        snapped = snap_weight(value, item)
        if item.grid.bits == 16:
            floats.add(snapped.numel())
            continue
        linear = isinstance(made.model.get_submodule(item.parameter.removesuffix(".weight")), nn.Linear)
        expected += rows_of(snapped.T.numpy() if linear else snapped.numpy())
        same = {in_order(value.numpy()), in_order(snapped.numpy())}
        assert not any(in_order(v) in same for v in file.constants.values() if v.dtype == np.float32), (
            item.parameter
        )
    assert Counter(expected) == Counter(row for weight in file.weights() for row in rows_of(weight))
    assert {v.size for v in file.constants.values() if v.dtype == np.float32 and v.ndim > 1} == floats


def rows_of(weight: np.ndarray) -> list[bytes]:
    """The last axis's rows, so that a weight in parts is as good as a whole one; without negative zeros."""
    return [row.tobytes() for row in np.atleast_2d(weight) + np.float32(0)]


def in_order(value: np.ndarray) -> bytes:
    return np.sort(value, axis=None).tobytes()


@every_plan
def test_planned_products(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernel_choice, "SLOW", math.inf
    )  # weights with zero points have no fast kernel on some processors
    assert planned_products(made.path) == made.case.products
    with insert(made.model, made.plan, "integer") as inserted:
        logits(made.model, ROWS)
    kernels = [ran.on for ran in inserted.linears.values() if ran.in_integers]
    in_groups = sum(kernel.startswith(f"{GROUPS} x") for kernel in kernels)
    cut = made.case.placement == ALL  # the first token's row: quantized too, but the engine does not see that
    assert len(kernels) + (GROUPS - 1) * in_groups + cut == made.case.products


@every_plan
def test_the_model_is_as_it_was(made: Exported) -> None:
    before, after = made.states
    assert after == before
    assert torch.equal(logits(made.model, ROWS), made.fp32)


@pytest.mark.slow
def test_an_empty_plan_is_the_model() -> None:
    made = exported("fp32")
    assert made.plan == QuantPlan()
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(node.op_type for node in File(made.path).nodes)
    torch.testing.assert_close(run(OnnxRuntime().open(made.path, 1), ROWS), made.fp32, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", QUANTIZED)
def test_an_exception_inside_restores_everything(name: str) -> None:
    model = CASES[name].model()
    plan, before = CASES[name].plan(model), all_of(model)
    with pytest.raises(KeyboardInterrupt), quantize_dequantize(model, plan):
        assert all_of(model) != before
        raise KeyboardInterrupt
    assert all_of(model) == before


def test_an_export_that_fails_restores_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(layers=1)
    plan, before = planned(model, ALL, Uniform()), all_of(model)

    def fails(*_: object, **__: object) -> None:
        assert all_of(model) != before
        raise RuntimeError("the exporter's own")

    filters = list(warnings.filters)
    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(RuntimeError, match="the exporter's own"):
        export_onnx(model, plan, ROWS.inputs, tmp_path / "model.onnx", {})
    assert all_of(model) == before
    assert warnings.filters == filters
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [6, 4, 16])
def test_widths_that_onnx_lacks(bits: int) -> None:
    """int16 is a format of mixed precision, and stays in float as FP16 does."""
    plan = planned(tiny_model(layers=1), ALL, Uniform(), activations=bits)
    message = (
        rf"{len(plan.activations)} sites have no integer equivalent in ONNX: {plan.activations[0].site} "
        rf"\(int{bits} asymmetric\), .*, \.\.\.\. .*use bits.activations=8, .*"
        rf"bits.rules=\[{{match: '{plan.activations[0].site}', bits: fp16}}\]"
    )
    with nullcontext() if bits == 16 else pytest.raises(ValueError, match=message):
        check_exportable(plan)


def test_the_way_out_that_the_message_names_works() -> None:
    model = tiny_model(layers=1)
    rules = [{"match": "0.ffn.sum", "bits": 6}]
    with pytest.raises(
        ValueError, match=r"1 sites .*: 0.ffn.sum \(int6 asymmetric\)\. .*match: '0.ffn.sum', bits: fp16"
    ):
        check_exportable(planned(model, ALL, Uniform(), rules=rules))
    check_exportable(planned(model, ALL, Uniform(), rules=[*rules, {"match": "0.ffn.sum", "bits": "fp16"}]))


@pytest.mark.parametrize(
    "other, method, bits, names",
    [
        ("layers", Uniform(), {"weights": 32}, r"1\.attn\.query"),
        (
            "layers",
            Uniform(),
            {"activations": 32},
            r"bert\.encoder\.layer\.1\.attention\.self\.query\.weight",
        ),
        ("width", Uniform(), {"weight_granularity": "channel"}, r"bert\.embeddings\.word_embeddings\.weight"),
        ("width", Peg(sites=XHY, k=3), {"weights": 32}, r"0\.ffn\.in, 0\.ffn\.out, 0\.ffn\.sum"),
        ("family", Uniform(), {}, r"distilbert\.embeddings\.word_embeddings\.weight"),
    ],
)
def test_a_plan_of_another_model(other: str, method: Method, bits: dict[str, object], names: str) -> None:
    """Its groups of 48 channels must not be taken for groups of 32."""
    config = tiny_config("bert", layers=1)
    config.hidden_size = 48
    makes = {
        "layers": lambda: tiny_model(layers=2),
        "width": lambda: AutoModelForSequenceClassification.from_config(
            config, attn_implementation="eager"
        ).eval(),
        "family": lambda: tiny_model("distilbert", layers=1),
    }
    plan = planned(makes[other](), ALL, method, **bits)
    with pytest.raises(ValueError, match=f"the plan is of another model: this one has no {names}"):
        check_fits(tiny_model(layers=1), plan)


def test_a_plan_of_this_model_fits() -> None:
    for case in CASES.values():
        model = case.model()
        check_fits(model, case.plan(model))
        check_fits(model, replace(case.plan(model), weights=()))
