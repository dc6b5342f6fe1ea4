"""What runs a trial's answers besides torch: a runtime opens an exported file and says what it made of it."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantlab.cli.progress import progress
from quantlab.config.checks import nearest
from quantlab.tasks.batching import Batch, total_rows

LAYOUT = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Gather", "Identity")
INTEGER, MIXED, FLOAT = "int8", "int8 in part", "float"


@dataclass(frozen=True, kw_only=True)
class ProductCounts:
    """The matrix products of a runtime's own optimized graph: how many run on which kernel."""

    integer: Mapping[str, int]  # with weights
    floating: Mapping[str, int]  # with weights
    attention: Mapping[str, int]  # of two activations; a kernel that fuses all of attention is not counted

    def kind(self, planned: int) -> str:
        """What a latency may be called where the file has so many products with weights in integers."""
        found = sum(self.integer.values())
        return INTEGER if found >= planned > 0 else MIXED if found else FLOAT

    def __str__(self) -> str:
        kinds = (("integer", self.integer), ("float", self.floating), ("in attention", self.attention))
        return "; ".join(f"{sum(kernels.values())} {name}{_listed(kernels)}" for name, kernels in kinds)


class Session(ABC):
    """A model that a runtime has loaded."""

    names: Sequence[str]  # of the inputs that the file has

    @abstractmethod
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits of shape (rows, classes) for inputs of shape (rows, tokens)."""

    @abstractmethod
    def products(self) -> ProductCounts:
        """Which matrix products the runtime runs in integers."""

    def predict(self, batches: Sequence[Batch], columns: Sequence[int]) -> np.ndarray:
        """Logits of all rows, in the examples' and the task's order."""
        logits = np.empty((total_rows(batches), len(columns)), dtype=np.float32)
        for batch in progress(batches, "deployed"):
            inputs = {name: tensor.numpy() for name, tensor in batch.inputs.items() if name in self.names}
            logits[batch.indices] = self(inputs)[:, list(columns)]
        return logits


@dataclass(frozen=True, kw_only=True)
class Runtime(ABC):
    """What answers besides the trial's own engine, if anything."""

    @abstractmethod
    def check(self) -> None:
        """Raises ValueError or OSError where a package or device is not there. Runs before anything is
        loaded."""


@dataclass(frozen=True, kw_only=True)
class TorchOnly(Runtime):
    """The trial's own engine alone: nothing is exported."""

    def check(self) -> None:
        """torch is here."""


class FileRuntime(Runtime):
    """A runtime of exported files: one file and one YAML each."""

    package: ClassVar[str]
    signed: ClassVar[bool] = (
        False  # how it likes activations on symmetric grids: as signed bytes, or as unsigned ones
    )

    @abstractmethod
    def open(self, path: Path, threads: int) -> Session:
        """Loads a file. Raises ValueError where it is no ONNX model."""

    def describe(self) -> str:
        """Name and version."""
        return f"{self.package} {version(self.package)}"


def require(package: str, extra: str) -> None:
    """Raises ValueError, naming the extra, where a package is not installed."""
    if find_spec(package) is None:
        raise ValueError(f"{package} is not installed: pip install 'quantlab[{extra}]'")


def require_device(name: str, known: Iterable[str]) -> None:
    """Raises ValueError where a runtime has no such device."""
    known = list(known)
    if name not in known:
        raise ValueError(
            f"runtime.device {name!r} is not here{nearest(name, known)}; there is {', '.join(known)}"
        )


def check_onnx(path: Path) -> None:
    """ONNX's own checker, with shapes. Raises ValueError where the file is no valid model."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, OSError) as error:
        raise ValueError(f"{path} is no valid ONNX model: {error}") from error


def planned_products(path: Path) -> int:
    """The file's products with weights whose two operands are dequantized: what a runtime can do in integers.

    A tensor that is only reshaped, transposed or cut after DequantizeLinear is dequantized all the same.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights, dequantized, planned = stored_values(graph), set[str](), 0
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type in LAYOUT and node.input[0] in dequantized):
            dequantized.update(node.output)
        if node.op_type in ("MatMul", "Gemm"):
            planned += set(node.input[:2]) <= dequantized and node.input[1] in weights
    return planned


def stored_values(graph: Any) -> set[str]:
    """Names of the values that an ONNX graph stores, as they are or as integers that it dequantizes."""
    names = {value.name for value in graph.initializer}
    unpacked = (node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in names)
    return names | {node.output[0] for node in unpacked}


def count_products(kernels: Iterable[tuple[str, bool]], integer: Iterable[str]) -> ProductCounts:
    """Kernels by name and whether they read a weight, split into those that ``integer`` names and the
    rest."""
    kernels, whole = list(kernels), set(integer)
    weighted = [name for name, has_weight in kernels if has_weight]
    return ProductCounts(
        integer=Counter(name for name in weighted if name in whole),
        floating=Counter(name for name in weighted if name not in whole),
        attention=Counter(name for name, has_weight in kernels if not has_weight),
    )


def _listed(kernels: Mapping[str, int]) -> str:
    return (
        f" ({', '.join(f'{number} {name}' for name, number in sorted(kernels.items()))})" if kernels else ""
    )
