"""Runs exported models on OpenVINO."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantlab.config.checks import one_of
from quantlab.runtimes.runtime import (
    FileRuntime,
    ProductCounts,
    Session,
    check_onnx,
    count_products,
    require,
)

WITH_WEIGHT = "FullyConnected"
FUSED = "Subgraph"  # one kernel for several nodes; its name does not say which
PRODUCTS = (WITH_WEIGHT, "MatMul", FUSED)
INTEGER = ("u8", "i8")


@dataclass(frozen=True, kw_only=True)
class OpenVino(FileRuntime):
    """OpenVINO, tuned for latency. What is not quantized runs in FP32, even if the processor has 16 bits."""

    package: ClassVar[str] = "openvino"
    signed: ClassVar[bool] = True  # then all of attention is one kernel, with products in integers

    device: str = "CPU"

    def check(self) -> None:
        require("openvino", "openvino")
        require("onnx", "onnx")
        require("onnxscript", "onnx")
        import openvino

        one_of("runtime.device", self.device, openvino.Core().available_devices)

    def open(self, path: Path, threads: int) -> Session:
        import openvino

        check_onnx(path)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return _Session(openvino.Core().compile_model(str(path), self.device, settings))

    def python_line(self, path: Path) -> str:
        return f"import openvino; session = openvino.Core().compile_model({str(path)!r}, {self.device!r})"


class _Session(Session):
    def __init__(self, compiled: Any):
        self.compiled, self.request = compiled, compiled.create_infer_request()
        self.names = [node.any_name for node in compiled.inputs]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = self.request.infer(dict(inputs))[self.compiled.output("logits")]
        return logits.copy()  # the next call overwrites the request's memory

    def products(self) -> ProductCounts:
        nodes = [node.get_rt_info() for node in self.compiled.get_runtime_model().get_ops()]
        products = (
            (_text(node, "layerType"), _text(node, "runtimePrecision"))
            for node in nodes
            if _text(node, "layerType") != FUSED or "matmul" in _text(node, "originalLayersNames").lower()
        )
        kernels = [
            (f"{layer} {precision}", layer == WITH_WEIGHT)
            for layer, precision in products
            if layer in PRODUCTS
        ]
        return count_products(
            kernels, (f"{layer} {precision}" for layer in PRODUCTS for precision in INTEGER)
        )


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str))
