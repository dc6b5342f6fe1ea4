"""Runs exported models on ONNX Runtime."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantlab.config.checks import one_of
from quantlab.runtimes.runtime import (
    FileRuntime,
    ProductCounts,
    Session,
    check_onnx,
    count_products,
    require,
    stored_values,
)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INTEGER = (
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QGemm",
    "QAttention",
)
FLOATING = ("MatMul", "FusedMatMul", "TransposeMatMul", "Gemm", "FusedGemm", "MatMulNBits", "Attention")
WEIGHT_INPUTS = {"QLinearMatMul": (3,), "QGemm": (3,), "MatMul": (0, 1)}  # where a weight may be; else at 1
ERRORS_ONLY = 3  # log level
# Without VNNI: slower kernels that do not saturate. And inputs in FP32, where a product of floats with a
# stored weight becomes a MatMulNBits, whose default is to round its input to bytes.
EXACT = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "1"}


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(FileRuntime):
    """ONNX Runtime with all its graph optimizations."""

    package: ClassVar[str] = "onnxruntime"

    device: str = "cpu"

    def check(self) -> None:
        require("onnxruntime", "onnx")
        require("onnx", "onnx")
        require("onnxscript", "onnx")
        import onnxruntime

        available = onnxruntime.get_available_providers()
        devices = [name for name, provider in PROVIDERS.items() if provider in available]
        one_of("runtime.device", self.device, devices)

    def open(self, path: Path, threads: int) -> Session:
        import onnxruntime

        check_onnx(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS_ONLY
        for name, value in EXACT.items():
            options.add_session_config_entry(name, value)
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(optimized)
            session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[self.device]])
            return _Session(session, _products(optimized))

    def python_line(self, path: Path) -> str:
        """With the settings that keep products exact."""
        exact = "; ".join(f"options.add_session_config_entry{entry}" for entry in EXACT.items())
        return (
            f"import onnxruntime as ort; options = ort.SessionOptions(); {exact}; "
            f"session = ort.InferenceSession({str(path)!r}, options, providers=[{PROVIDERS[self.device]!r}])"
        )


class _Session(Session):
    def __init__(self, session: "onnxruntime.InferenceSession", products: ProductCounts):  # type: ignore[name-defined]  # noqa: F821
        self.session, self.product_counts = session, products
        self.names = [node.name for node in session.get_inputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = self.session.run(["logits"], dict(inputs))[0]
        return logits

    def products(self) -> ProductCounts:
        return self.product_counts


def _products(optimized: Path) -> ProductCounts:
    import onnx

    graph = onnx.load(str(optimized), load_external_data=False).graph
    weights = stored_values(graph)
    products = (node for node in graph.node if node.op_type in {*INTEGER, *FLOATING})
    kernels = (
        (node.op_type, any(node.input[at] in weights for at in WEIGHT_INPUTS.get(node.op_type, (1,))))
        for node in products
    )
    return count_products(kernels, INTEGER)
