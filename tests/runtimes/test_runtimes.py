"""What runtimes say of a file and of what is not there, and how their answers come back into order."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import CASES, ROWS, exported, run
from tiny import ALL

from quantlab.plan.plan import QuantPlan
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.openvino import OpenVino
from quantlab.runtimes.runtime import (
    FLOAT,
    INTEGER,
    MIXED,
    FileRuntime,
    ProductCounts,
    Session,
    TorchOnly,
    count_products,
)
from quantlab.runtimes.saturation import saturates
from quantlab.tasks.batching import Batch
from quantlab.tasks.glue import Glue
from quantlab.trial.deployed import deployed_scores, run_deployed

pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[onnx]'")
RUNTIMES: dict[str, type[FileRuntime]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
DEVICES = {"onnxruntime": "cpu", "openvino": "CPU"}

OTHERS = [name for name in CASES if name != "gemm"]


@pytest.fixture(params=RUNTIMES)
def package(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name, reason=f"needs {name}: pip install -e '.[onnx,openvino]'")
    return name


@pytest.fixture
def runtime(package: str) -> FileRuntime:
    return RUNTIMES[package]()


@pytest.mark.parametrize("name", ["gemm", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_integers_run_in_integers_and_give_the_simulation_s_answers(name: str, runtime: FileRuntime) -> None:
    if saturates(runtime):
        pytest.skip("the runtime's integer products saturate on this processor: it has no VNNI")
    made = exported(name, runtime.signed)
    deployed = run_deployed(runtime, made.path, [ROWS], [0, 1])
    # ONNX Runtime does not see that the first token's row is quantized where the whole tensor is
    cut = isinstance(runtime, OnnxRuntime) and made.case.placement == ALL
    assert deployed.kind == (FLOAT if name == "fp32" else MIXED if cut else INTEGER)
    assert deployed.planned == made.case.products
    assert (sum(deployed.products.integer.values()) > 0) == (made.plan != QuantPlan())
    assert deployed.size_bytes == 0  # the file has a name of its own here; see tests/test_export.py
    errors = np.abs(deployed.logits - made.simulated.numpy()) / made.simulated.abs().max().item()
    # FP32's rounding in the simulation moves a row or so by a step, which the layers after it amplify.
    assert np.quantile(errors, 0.9) < 0.1 and np.median(errors) < 0.02


def test_onnx_runtime_s_products_are_exact_on_every_processor() -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[onnx]'")
    assert not saturates(OnnxRuntime())


def test_a_product_that_is_cut_is_seen(runtime: FileRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(Remembers):
        def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return np.minimum(inputs["x"] * 64 * 127, 32767)

    monkeypatch.setattr(type(runtime), "open", lambda *_, **__: Cut())
    assert saturates(runtime)


@pytest.mark.slow
def test_either_kind_of_bytes_has_the_same_answers(runtime: FileRuntime) -> None:
    signed, unsigned = (exported("all, symmetric, per channel", kind) for kind in (True, False))
    assert signed.path.read_bytes() != unsigned.path.read_bytes()
    answers = [run(runtime.open(made.path, 1), ROWS) for made in (signed, unsigned)]
    torch.testing.assert_close(*answers, rtol=0, atol=0.05)


@pytest.mark.slow
def test_openvino_runs_attention_in_integers_too() -> None:
    pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[onnx,openvino]'")
    products = OpenVino().open(exported("all, symmetric, per channel", OpenVino.signed).path, 1).products()
    assert sum(products.attention.values()) > 0
    assert not any(kernel.endswith("f32") for kernel in products.attention), str(products)


def test_a_session_s_answers_stay_what_they_are(runtime: FileRuntime) -> None:
    """The next call may reuse a runtime's memory, but not what was given out."""
    session = runtime.open(exported("gemm").path, 1)
    first = run(session, ROWS)
    kept = first.clone()
    other = {name: tensor.flip(0) for name, tensor in ROWS.inputs.items()}
    assert not torch.equal(run(session, Batch(inputs=other, indices=ROWS.indices)), kept)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("cut", [None, 0, 100, -7], ids=["missing", "empty", "a little", "nearly all"])
def test_a_file_that_is_no_model_is_named(cut: int | None, runtime: FileRuntime, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if cut is not None:
        path.write_bytes(exported("gemm").path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f"{path} is no valid ONNX model: "):
        runtime.open(path, 1)


def test_a_model_that_breaks_onnx_s_rules_is_named(runtime: FileRuntime, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(exported("gemm").path))
    next(node for node in model.graph.node if node.op_type == "DequantizeLinear").input[1] = "nowhere"
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match=r"model.onnx is no valid ONNX model: (.|\n)*nowhere"):
        runtime.open(tmp_path / "model.onnx", 1)


def test_a_device_that_is_not_here(package: str) -> None:
    device = DEVICES[package]
    RUNTIMES[package](device=device).check()
    with pytest.raises(
        ValueError,
        match=rf"runtime.device must be one of .*{device}.*got '{device}x' \(did you mean '{device}'",
    ):
        RUNTIMES[package](device=f"{device}x").check()


@pytest.mark.parametrize(
    "name, lacking, extra",
    [
        ("onnxruntime", "onnxruntime", "onnx"),
        ("onnxruntime", "onnx", "onnx"),
        ("onnxruntime", "onnxscript", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("openvino", "onnx", "onnx"),
        ("openvino", "onnxscript", "onnx"),
    ],
)
def test_a_package_that_is_not_installed_names_its_extra(
    name: str, lacking: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"onnx", "onnxruntime", "onnxscript", "openvino"} - {lacking}
    spec = importlib.util.find_spec("json")
    monkeypatch.setattr(
        "quantlab.runtimes.runtime.find_spec", lambda package: spec if package in installed else None
    )
    with pytest.raises(ValueError, match=rf"^{lacking} is not installed: pip install 'quantlab\[{extra}\]'$"):
        RUNTIMES[name]().check()


def test_torch_needs_nothing() -> None:
    TorchOnly().check()


def test_a_runtime_says_its_name_and_version(package: str, runtime: FileRuntime) -> None:
    name, version = runtime.describe().split()
    assert name == package and version[0].isdigit()


@pytest.mark.parametrize(
    "integer, floating, planned, kind",
    [
        ({"Q": 3}, {}, 3, INTEGER),
        ({"Q": 2, "R": 1}, {"M": 9}, 3, INTEGER),  # what was never planned in integers may be float
        ({"Q": 4}, {"M": 1}, 3, INTEGER),  # a runtime may find more than was planned
        ({"Q": 2}, {"M": 1}, 3, MIXED),
        ({"Q": 2}, {}, 0, MIXED),
        ({}, {"M": 3}, 3, FLOAT),
        ({}, {"M": 3}, 0, FLOAT),
        ({}, {}, 0, FLOAT),
    ],
)
def test_what_a_latency_may_be_called(
    integer: dict[str, int], floating: dict[str, int], planned: int, kind: str
) -> None:
    assert ProductCounts(integer=integer, floating=floating, attention={}).kind(planned) == kind


def test_products_are_counted_by_kernel() -> None:
    kernels = [
        ("M", True),
        ("R", True),
        ("Q", True),
        ("M", True),
        ("Q", True),
        ("Q", True),
        ("Q", False),
        ("M", False),
    ]
    counts = count_products(kernels, ["Q", "R", "never"])
    assert counts == ProductCounts(integer={"Q": 3, "R": 1}, floating={"M": 2}, attention={"Q": 1, "M": 1})
    assert str(counts) == "4 integer (3 Q, 1 R); 2 float (2 M); 2 in attention (1 M, 1 Q)"
    assert str(count_products([], ["Q"])) == "0 integer; 0 float; 0 in attention"


class Remembers(Session):
    """Answers each row with its first token, twice that, and three times that."""

    names = ("input_ids",)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        assert set(inputs) == set(self.names)
        return inputs["input_ids"][:, :1] * np.array([[1.0, 2.0, 3.0]])

    def products(self) -> ProductCounts:
        return count_products([], [])


def test_answers_are_in_the_rows_and_the_labels_order() -> None:
    batches = [
        Batch(
            inputs={"input_ids": torch.tensor(ids), "token_type_ids": torch.tensor(ids)},
            indices=np.array(indices),
        )
        for ids, indices in [([[30, 1], [10, 1]], [3, 1]), ([[20]], [2]), ([[0], [40]], [0, 4])]
    ]
    expected = [[0, 0], [30, 10], [60, 20], [90, 30], [120, 40]]
    assert Remembers().predict(batches, (2, 0)).tolist() == expected


QNLI = Glue(name="qnli", labels=("yes", "no"), metrics=("accuracy", "f1"), config="qnli", text=("question",))
STSB = Glue(name="stsb", labels=(), metrics=("pearson",), config="stsb", text=("sentence1",))


def test_deployed_answers_are_compared() -> None:
    deployed, trial = np.eye(2)[[0, 1, 1, 0]], 7 * np.eye(2)[[0, 1, 0, 1]]
    scores = deployed_scores(QNLI, np.array([0, 1, 1, 1]), deployed, trial)
    assert scores == {"accuracy_deployed": 0.75, "agreement_deployed": 0.5}
    ramp = np.arange(4.0)[:, None]
    assert deployed_scores(STSB, np.arange(4), -ramp, ramp) == {"pearson_deployed": pytest.approx(-1)}
