"""What runs a trial's answers besides torch: a runtime opens an exported file and says what it made of it."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantlab.batching import Batch, total_rows
from quantlab.checks import nearest
from quantlab.progress import progress

INTEGER, MIXED, FLOAT = "int8", "int8 in part", "float"


@dataclass(frozen=True, kw_only=True)
class Products:
    """The matrix products of a runtime's own optimized graph, by the kind of kernel."""

    integer: Mapping[str, int]
    floating: Mapping[str, int]

    def kind(self, planned: int) -> str:
        """What a latency may be called where the file has so many integer products."""
        found = sum(self.integer.values())
        return INTEGER if found >= planned > 0 else MIXED if found else FLOAT

    def __str__(self) -> str:
        kinds = (("integer", self.integer), ("float", self.floating))
        return "; ".join(f"{sum(kernels.values())} {name}{_listed(kernels)}" for name, kernels in kinds)


class Session(ABC):
    """A model that a runtime has loaded."""

    names: Sequence[str]  # of the inputs that the file has

    @abstractmethod
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits of shape (rows, classes) for inputs of shape (rows, tokens)."""

    @abstractmethod
    def products(self) -> Products:
        """Which matrix products the runtime runs in integers."""

    def answer(self, batches: Sequence[Batch], columns: Sequence[int]) -> np.ndarray:
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
        """Raises ValueError or OSError where a package or device is not there. Runs before anything is loaded."""


@dataclass(frozen=True, kw_only=True)
class Torch(Runtime):
    """The trial's own engine alone: nothing is exported."""

    def check(self) -> None:
        """torch is here."""


class Deployment(Runtime):
    """A runtime of exported files: one file and one YAML each."""

    package: ClassVar[str]

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
        raise ValueError(f"runtime.device {name!r} is not here{nearest(name, known)}; there is {', '.join(known)}")


def check_model(path: Path) -> None:
    """ONNX's own checker, with shapes. Raises ValueError where the file is no valid model."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, OSError) as error:
        raise ValueError(f"{path} is no valid ONNX model: {error}") from error


def planned_products(path: Path) -> int:
    """The file's matrix products whose two operands are both dequantized: what a runtime can do in integers."""
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return sum(node.op_type == "MatMul" and set(node.input) <= dequantized for node in nodes)


def count(kernels: Iterable[str], integer: Iterable[str]) -> Products:
    """Kernels by name, split into those that ``integer`` names and the rest."""
    counted, whole = Counter(kernels), set(integer)
    return Products(
        integer={name: number for name, number in counted.items() if name in whole},
        floating={name: number for name, number in counted.items() if name not in whole},
    )


def _listed(kernels: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{number} {name}' for name, number in sorted(kernels.items()))})" if kernels else ""
