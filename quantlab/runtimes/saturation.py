"""Tests whether a runtime's integer products saturate on this processor.

Without VNNI, x86's instruction for bytes sums two products in 16 bits: 255 x 127 + 255 x 127 becomes 32767.
"""

import tempfile
from pathlib import Path

import numpy as np

from quantlab.runtimes.runtime import FileRuntime

CHANNELS = 64  # of input and output: enough for a runtime to choose its usual kernel
WEIGHT = 127  # the value of all weights
INPUTS = (127.0, -128.0)  # the largest and the smallest signed byte, on a grid with step 1
NAME = "x"


def saturates(runtime: FileRuntime) -> bool:
    """Returns True if a product of the largest bytes differs from the exact sum."""
    with tempfile.TemporaryDirectory(prefix="quantlab-") as folder:
        path = Path(folder) / "model.onnx"
        _write_product(path, runtime.signed)
        session = runtime.open(path, threads=1)
        rows = np.repeat(np.array(INPUTS, dtype=np.float32)[:, None], CHANNELS, axis=1)
        return not np.array_equal(session({NAME: rows}), rows * CHANNELS * WEIGHT)


def _write_product(path: Path, signed: bool) -> None:
    """Writes logits = x W, with x and W in bytes as :mod:`quantlab.runtimes.qdq` writes them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    stored = {
        "step": np.array(1, dtype=np.float32),
        "zero": np.array(0, dtype=np.int8) if signed else np.array(128, dtype=np.uint8),
        "weight": np.full((CHANNELS, CHANNELS), WEIGHT, dtype=np.int8),
        "weight_zero": np.array(0, dtype=np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", [NAME, "step", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["input"]),
        helper.make_node("DequantizeLinear", ["weight", "step", "weight_zero"], ["matrix"]),
        helper.make_node("MatMul", ["input", "matrix"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info(NAME, TensorProto.FLOAT, ["batch", CHANNELS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CHANNELS])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
