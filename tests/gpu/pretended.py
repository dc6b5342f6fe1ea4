"""A GPU that is pretended: tensors say that they are on ``cuda:0``, and their numbers are on the CPU.

Every operator runs for real, so that values, branches and results are a CPU's. What a real GPU refuses raises
RuntimeError here too: an operator whose tensors are on two devices, numpy's view of a GPU's memory, its
address handed to C, a CPU's generator. So a whole trial can run "on a GPU" where there is none.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

aten = torch.ops.aten
GPU, UNNUMBERED = torch.device("cuda:0"), torch.device("cuda")
CPU = torch.device("cpu")
BETWEEN_DEVICES = {aten._to_copy, aten.to, aten.copy_, aten.copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # indices may be on the CPU
BATCH = "pretended GPU"


class OnGpu(Tensor):
    """A tensor on the pretended GPU. ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        with torch.inference_mode(False):  # so that it may be a view of a tensor from outside that mode
            made: OnGpu = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=GPU,
                requires_grad=held.requires_grad,
            )
        made.held = held
        return made

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The tensor without its history; assigned another one, it takes that one's numbers."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, OnGpu) and value.shape == self.shape, "a GPU's parameter stays on the GPU"
        self.held = value.held

    def __getitem__(self, index: Any) -> Tensor:
        view, chosen = _indexed(self, index)
        return aten.index(view, chosen) if chosen else view

    def __setitem__(self, index: Any, value: Any) -> None:
        view, chosen = _indexed(self, index)
        value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype, device=GPU)
        aten.index_put_(view, chosen, value) if chosen else aten.copy_(view, value)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __float__(self) -> float:
        return float(self.held)

    def __index__(self) -> int:
        return int(self.held)

    def nonzero(self) -> Tensor:  # type: ignore[override]
        return aten.nonzero(self)

    def contiguous(self, **kwargs: Any) -> Tensor:
        return aten.contiguous(self, **kwargs)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("numpy() of a tensor on the GPU: call cpu() first")

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        raise RuntimeError("the address of a tensor on the GPU")

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnGpu":
        made = OnGpu(self.held.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            made._is_param = True
        memo[id(self)] = made
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Tells ``Module.to`` that a parameter becomes another object, and not another's memory."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "OnGpu":
        return OnGpu(inner["held"])

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Catches operators that make a tensor on the GPU out of none."""

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Numbered(TorchFunctionMode):
    """Says ``cuda:0`` where somebody says ``cuda``: torch would ask CUDA which of its devices is meant."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return func(*tree_map(_numbered, args), **tree_map(_numbered, kwargs or {}))


def _numbered(value: Any) -> Any:
    asked = isinstance(value, str | torch.device) and value in ("cuda", UNNUMBERED)
    return GPU if asked else value


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator returns, on the device where a GPU would have it. Raises RuntimeError where it cannot
    run."""
    given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    here = {id(tensor.held): tensor for tensor in given if isinstance(tensor, OnGpu)}
    asked = next((value for value in tree_iter((args, kwargs)) if isinstance(value, torch.device)), None)
    on_gpu = bool(here) if asked is None else asked.type == "cuda"
    if func.overloadpacket not in BETWEEN_DEVICES:
        _require_one_device(func, args, given, on_gpu)
    generator = kwargs.get("generator")
    if on_gpu and generator is not None and generator.device.type != "cuda":
        raise RuntimeError(f"{func}: a CPU's generator for a tensor on the GPU")
    if func.overloadpacket is aten.copy_:
        on_gpu = isinstance(args[0], OnGpu)
    found = func(*tree_map(_real, args), **tree_map(_real, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not on_gpu:
            return value
        return here.get(id(value)) if id(value) in here else OnGpu(value)

    return tree_map(placed, found)


def _require_one_device(func: Any, args: Any, given: Sequence[Tensor], on_gpu: bool) -> None:
    """Raises RuntimeError where a GPU's operator is handed a tensor of the CPU. A CPU's single number is
    taken, and so are its indices of a tensor on the GPU."""
    if func.overloadpacket in INDEXED and isinstance(args[0], OnGpu):
        given = [args[0], *(value for value in args[2:] if isinstance(value, Tensor))]
    strangers = [tensor for tensor in given if not isinstance(tensor, OnGpu) and tensor.ndim]
    if on_gpu and strangers and any(isinstance(tensor, OnGpu) for tensor in given):
        shapes = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in given)
        raise RuntimeError(f"{func}: tensors on two devices: {shapes}")


def _indexed(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Numbers, slices and new axes taken; tensors and lists left, one for each axis. Python's own way asks
    CUDA for the current device."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part.ndim if _is_mask(part) else part is not None and part is not ... for part in parts)
    if ... in [part for part in parts if not isinstance(part, Tensor)]:
        where = next(i for i, part in enumerate(parts) if part is ...)
        parts[where : where + 1] = [slice(None)] * (tensor.ndim - taken)
    chosen: list[Tensor | None] = []
    for part in parts:
        axis = len(chosen)
        if part is None:
            tensor = tensor.unsqueeze(axis)
            chosen.append(None)
        elif isinstance(part, slice):
            step = 1 if part.step is None else part.step
            tensor = aten.slice(tensor, axis, part.start, part.stop, step)
            chosen.append(None)
        elif isinstance(part, Tensor) and part.ndim:
            chosen.append(part)
            chosen += [None] * (part.ndim - 1 if _is_mask(part) else 0)
        elif isinstance(part, list | np.ndarray):
            chosen.append(torch.as_tensor(part))
        else:
            tensor = tensor.select(axis, int(part))
    if any(_is_mask(part) and part.ndim > 1 for part in chosen):
        chosen = [part for part in chosen if part is not None]  # a mask stands for all of its axes
    return tensor, chosen if any(part is not None for part in chosen) else []


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool


def _real(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.held if isinstance(value, OnGpu) else value


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Lets torch see one GPU until the exit."""
    found: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: BATCH,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "synchronize": lambda *_: None,
    }
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._ensureCUDADeviceGuardSet()  # as torch itself does for its fake tensors
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with patch.multiple(torch.cuda, **found), _Factories(), _Numbered():
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
