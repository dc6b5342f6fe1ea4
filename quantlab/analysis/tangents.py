"""Passes of one batch from a layer on: with sites quantized, or with their errors as tangents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from quantlab.analysis.channels import real_tokens
from quantlab.engines.resume import recorded, resumed
from quantlab.network.attention import TensorFunction
from quantlab.network.taps import Tap, tapped
from quantlab.tasks.batching import Batch, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Watched = Mapping[str, Tap]  # by site


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Sites that are quantized together, and the first layer whose output they change; None: not known."""

    name: str
    snaps: Mapping[Tap, TensorFunction]
    layer: int | None = None


@dataclass(kw_only=True, eq=False)
class Tangent:
    """A predicted error of the logits, (elements, C), and sums of squares on its way."""

    logits: Tensor
    local: float = 0.0  # of the error at the source
    signal: float = 0.0  # of the source's tensor
    at: dict[str, float] = field(default_factory=dict)  # of the error, by watched site


class OneBatch(AbstractContextManager["OneBatch"]):
    """One batch in the unquantized network, and passes from its layers' outputs on.

    Every tap of a source is tapped throughout, so that all passes compute attention by the same code.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: Batch,
        watched: Watched,
        every: Mapping[Tap, TensorFunction],
        skips: bool,
    ):
        self.model, self.batch, self.watched, self.every, self.skips = model, batch, watched, every, skips
        self.mask = real_tokens(batch)
        self.layers: dict[int, object] = {}
        self.states: dict[str, Tensor] = {}

    def __enter__(self) -> OneBatch:
        self.held = ExitStack()
        self.held.enter_context(self._same_code())
        with recorded(self.model, self.layers) if self.skips else nullcontext():
            self.base = self.run({}, None, states=self.states)
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()

    @contextmanager
    def _same_code(self) -> Iterator[None]:
        with sdpa_kernel(SDPBackend.MATH), tapped(self.model, dict.fromkeys(self.every, _same)):
            yield

    def run(
        self,
        snaps: Mapping[Tap, TensorFunction],
        layer: int | None,
        fraction: float = 1.0,
        states: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """The logits with these sites quantized, or moved by a fraction of their error."""
        functions = {tap: _moved(snap, fraction) for tap, snap in snaps.items()}
        if states is not None:
            for name, tap in self.watched.items():
                functions[tap] = _then(functions.get(tap), _kept(states, name, tap, self.mask))
        return judged(self._logits(functions, layer), self.batch)

    def tangent(self, source: Source) -> Tangent:
        """The predicted error of the logits, by one forward-mode product."""
        found = Tangent(logits=self.base)
        functions: dict[Tap, TensorFunction] = {
            tap: _with_error(snap, tap, self.mask, found) for tap, snap in source.snaps.items()
        }
        for name, tap in self.watched.items():
            functions[tap] = _then(functions.get(tap), _tangent_power(name, tap, self.mask, found))
        _load_formulas()
        with forward_ad.dual_level():
            tangent = _unpacked(self._logits(functions, source.layer))[1]
            found.logits = torch.zeros_like(self.base) if tangent is None else judged(tangent, self.batch)
        return found

    def _logits(self, functions: Mapping[Tap, TensorFunction], layer: int | None) -> Tensor:
        start = -1 if layer is None else layer - 1
        known = start in self.layers
        skipped = resumed(self.model, start, self.layers[start]) if known else nullcontext()
        with skipped, tapped(self.model, functions):
            logits: Tensor = self.model(**on_device(self.batch, self.model.device)).logits
        return logits


@cache
def _load_formulas() -> None:
    """Loads what torch otherwise loads at the first tangent, without TorchScript's notice of its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import_module("torch._decomp.decompositions_for_jvp")


def _unpacked(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tensor's value and its tangent; None if it has none."""
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return primal, tangent


def _same(x: Tensor) -> Tensor:
    return x


def _moved(snap: TensorFunction, fraction: float) -> TensorFunction:
    return lambda x: x + fraction * (snap(x) - x)


def _with_error(snap: TensorFunction, tap: Tap, mask: Tensor | None, found: Tangent) -> TensorFunction:
    """Gives the tensor its quantization error as a tangent, on top of the one that it has."""

    def inject(x: Tensor) -> Tensor:
        plain = _unpacked(x)[0]
        error = snap(plain) - plain
        found.local += power(tap.elements(error, mask))
        found.signal += power(tap.elements(plain, mask))
        dual: Tensor = forward_ad.make_dual(torch.zeros_like(plain), error)  # type: ignore[no-untyped-call]
        return x + dual

    return inject


def _tangent_power(name: str, tap: Tap, mask: Tensor | None, found: Tangent) -> TensorFunction:
    def look(x: Tensor) -> Tensor:
        tangent = _unpacked(x)[1]
        if tangent is not None:
            found.at[name] = found.at.get(name, 0.0) + power(tap.elements(tangent, mask))
        return x

    return look


def _kept(states: dict[str, Tensor], name: str, tap: Tap, mask: Tensor | None) -> TensorFunction:
    def keep(x: Tensor) -> Tensor:
        states[name] = tap.elements(x, mask).clone()
        return x

    return keep


def _then(first: TensorFunction | None, second: Callable[[Tensor], Tensor]) -> TensorFunction:
    return second if first is None else lambda x: second(first(x))


def power(x: Tensor) -> float:
    """The sum of squares, summed in float64."""
    return float(x.square().sum(dtype=torch.float64))


def judged(logits: Tensor, batch: Batch) -> Tensor:
    """The logits that a task reads: all of them, or where tokens are predicted those before each."""
    if batch.predicted is None:
        return logits
    ends = batch.inputs["attention_mask"].sum(1).tolist()
    counts = batch.predicted[:, 0].astype(int).tolist()
    rows = zip(logits, ends, counts, strict=True)
    return torch.cat([row[end - count - 1 : end - 1] for row, end, count in rows])
