"""Runtimes that run a trial's exported model, and the matrix products that they run in integers."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from quantlab.cli.progress import progress
from quantlab.tasks.batching import Batch
from quantlab.tasks.outcomes import in_order, outcomes

# Operators that move values without changing them.
LAYOUT = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Gather", "Identity")
INTEGER, MIXED, FLOAT = "int8", "int8 in part", "float"


@dataclass(frozen=True, kw_only=True)
class ProductCounts:
    """Matrix products of a runtime's optimized graph: how many run on each kernel, by the kernel's name."""

    integer: Mapping[str, int]  # products with a weight, in integers
    floating: Mapping[str, int]  # products with a weight, in float
    attention: Mapping[str, int]  # products of two activations; without kernels that fuse all of attention

    def kind(self, planned: int) -> str:
        """Returns the arithmetic that a latency is of, if the file plans so many integer products."""
        integer = sum(self.integer.values())
        return INTEGER if integer >= planned > 0 else MIXED if integer else FLOAT

    def __str__(self) -> str:
        kinds = (("integer", self.integer), ("float", self.floating), ("in attention", self.attention))
        return "; ".join(f"{sum(kernels.values())} {name}{_listed(kernels)}" for name, kernels in kinds)


class Session(ABC):
    """A model that a runtime has loaded."""

    names: Sequence[str]  # of the file's inputs

    @abstractmethod
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns logits, (rows, classes), or (rows, tokens, words) of a decoder, for one batch of inputs."""

    @abstractmethod
    def products(self) -> ProductCounts:
        """Returns the matrix products of the loaded model, by kernel."""

    def predict(self, batches: Sequence[Batch], columns: Sequence[int]) -> np.ndarray:
        """Returns the outcomes of all rows, (N, C), in the examples' and the task's order."""
        values = []
        for batch in progress(batches, "deployed"):
            inputs = {name: tensor.numpy() for name, tensor in batch.inputs.items() if name in self.names}
            values.append(outcomes(torch.from_numpy(self(inputs)), batch, columns))
        return in_order(values, batches)


@dataclass(frozen=True, kw_only=True)
class Runtime(ABC):
    """Runs a trial's model besides the trial's own engine."""

    @abstractmethod
    def check(self) -> None:
        """Raises ValueError or OSError if a package or device is missing. Runs before anything is loaded."""


@dataclass(frozen=True, kw_only=True)
class TorchOnly(Runtime):
    """No other runtime: the trial's own engine runs the model, and nothing is exported."""

    def check(self) -> None:
        """Does nothing: torch is always installed."""


class FileRuntime(Runtime):
    """A runtime that runs exported ONNX files. Each is one module, and one YAML in ``conf/runtime``."""

    package: ClassVar[str]
    # Whether it is faster with activations of symmetric grids as signed bytes than as unsigned ones.
    signed: ClassVar[bool] = False

    @abstractmethod
    def open(self, path: Path, threads: int) -> Session:
        """Loads a file, to run it on so many threads. Raises ValueError if it is no ONNX model."""

    @abstractmethod
    def python_line(self, path: Path) -> str:
        """A line of Python that loads a file with the runtime alone, as the variable ``session``."""

    def describe(self) -> str:
        """Returns the package's name and version."""
        return f"{self.package} {version(self.package)}"


def require(package: str, extra: str) -> None:
    """Raises ValueError, with the extra that installs it, if a package is not installed."""
    if find_spec(package) is None:
        raise ValueError(f"{package} is not installed: pip install 'quantlab[{extra}]'")


def check_onnx(path: Path) -> None:
    """Runs ONNX's checker, shape inference included. Raises ValueError if the file is no valid model."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, OSError) as error:
        raise ValueError(f"{path} is no valid ONNX model: {error}") from error


def planned_products(path: Path) -> int:
    """Returns how many of a file's products with weights a runtime can run in integers.

    These are the products whose operands both come from a DequantizeLinear, and products of integers as they
    stand. Operators of :data:`LAYOUT` may stand between.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights, dequantized, planned = stored_values(graph), set[str](), 0
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type in LAYOUT and node.input[0] in dequantized):
            dequantized.update(node.output)
        if node.op_type == "MatMulInteger":
            planned += 1
        if node.op_type in ("MatMul", "Gemm"):
            planned += set(node.input[:2]) <= dequantized and node.input[1] in weights
    return planned


def stored_values(graph: Any) -> set[str]:
    """Returns the names of an ONNX graph's stored values, dequantized ones included."""
    names = {value.name for value in graph.initializer}
    unpacked = (node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in names)
    return names | {node.output[0] for node in unpacked}


def count_products(kernels: Iterable[tuple[str, bool]], integer: Iterable[str]) -> ProductCounts:
    """Counts products by kernel.

    ``kernels`` has a pair for each product: the kernel's name, and whether one operand is a weight.
    ``integer`` are the names of integer kernels.
    """
    kernels, integer_names = list(kernels), set(integer)
    weighted = [name for name, has_weight in kernels if has_weight]
    return ProductCounts(
        integer=Counter(name for name in weighted if name in integer_names),
        floating=Counter(name for name in weighted if name not in integer_names),
        attention=Counter(name for name, has_weight in kernels if not has_weight),
    )


def _listed(kernels: Mapping[str, int]) -> str:
    return (
        f" ({', '.join(f'{number} {name}' for name, number in sorted(kernels.items()))})" if kernels else ""
    )
