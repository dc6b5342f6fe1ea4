"""Walks through a network's Linears in order, each seen behind the ones before it as they are by then.

A caller may quantize the Linears of a step before it asks for the next one, which then sees inputs from a
quantized network. A step costs a part of one layer and not a whole pass: what each layer returned is kept
for every batch, and the next pass resumes there and stops at the Linear it came for.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from quantlab.engines.resume import layers_of
from quantlab.machine.parallel import side_by_side
from quantlab.network.architecture import family_of
from quantlab.network.attention import TensorFunction
from quantlab.network.taps import ModuleInput, Tap, tapped
from quantlab.tasks.batching import Batch, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Sum(Protocol):
    """A statistic of which two parts add up."""

    def __add__(self, other: Self, /) -> Self: ...


S = TypeVar("S", bound=Sum)


@dataclass(frozen=True)
class Step:
    """Linears that read one tensor, as query, key and value do, and the layer that they are in.

    The layer is -1 before the first layer, and the number of layers behind the last.
    """

    linears: tuple[str, ...]
    layer: int


@dataclass(frozen=True)
class Network:
    """A model to walk through, and the functions of its taps meanwhile."""

    model: PreTrainedModel
    functions: Mapping[Tap, TensorFunction] = field(default_factory=dict)


class _ArrivedError(Exception):
    """Ends a pass."""


@torch.no_grad()
def steps_of(model: PreTrainedModel, batch: Batch) -> list[Step]:
    """Every Linear of the model that one pass over a batch calls, in the pass's order."""
    read: dict[int, tuple[Tensor, list[str]]] = {}  # tensors are kept, so that no other gets their number

    def look(path: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.setdefault(id(inputs[0]), (inputs[0], []))[1].append(path)

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(partial(look, path)).remove)
        model(**on_device(batch, model.device))
    layers, steps, layer = family_of(model).layers, list[Step](), -1
    for _, linears in read.values():
        inside = linears[0].startswith(f"{layers}.")
        if inside:
            layer = int(linears[0].removeprefix(f"{layers}.").split(".")[0])
        elif layer >= 0:
            layer = len(layers_of(model))
        steps.append(Step(tuple(linears), layer))
    return steps


def walk(
    networks: Sequence[Network],
    batches: Sequence[Batch],
    steps: Sequence[Step],
    statistic: Callable[..., S],
    count_padding: bool = False,
) -> Generator[tuple[Step, S]]:
    """Yields each step with the sum over all batches of ``statistic(step, batch's number, x, ...)``.

    There is an x (elements, channels) for each of the networks, which run side by side: what the step's
    Linears read in it, without padding. All networks have the same modules. A network is seen as it is when
    the step is asked for: weights may change in between, those of steps that have been yielded. Steps are in
    the network's order. Batches run side by side in threads, and their statistics are added in the batches'
    order, so that the result is the same to the bit for any number of threads. Kept in memory: the output
    of one layer for each batch and network.
    """
    passes = [_Passes(network.model) for network in networks]
    device = networks[0].model.device

    def run(step: Step, number: int) -> S:
        inputs = on_device(batches[number], device)
        mask = inputs.get("attention_mask")
        mask = None if mask is None or count_padding else mask.bool()
        tap = ModuleInput(step.linears[0])
        return statistic(step, number, *(tap.elements(one.run(number, inputs), mask) for one in passes))

    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(tapped(network.model, network.functions))
        for step in steps:
            with ExitStack() as during:
                for one in passes:
                    during.enter_context(one.stopping_at(step))
                results = side_by_side(partial(run, step), range(len(batches)), device)
                seen = reduce(operator.add, results)
            yield step, seen


class _Passes:
    """Passes through one network that resume behind the last layer recorded, and end at a Linear."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.layers = model, layers_of(model)
        self.last, self.outputs = -1, dict[int, Any]()  # the last layer recorded; what it returned, by batch
        self.running = threading.local()  # of this thread's batch: the output to resume with, what is seen

    @contextmanager
    def stopping_at(self, step: Step) -> Iterator[None]:
        """Until the exit, passes skip what is recorded, record the layer before the step's, and end there."""
        last = min(step.layer, len(self.layers)) - 1
        with ExitStack() as stack:
            for layer in self.layers[: self.last + 1]:
                vars(layer)["forward"] = lambda *_, **__: _copied(self.running.resumed)
                stack.callback(vars(layer).pop, "forward")
            if last > self.last:
                stack.callback(self.layers[last].register_forward_hook(self._record).remove)
            linear = self.model.get_submodule(step.linears[0])
            stack.callback(linear.register_forward_pre_hook(self._arrive).remove)
            yield
        if last > self.last:
            self.last = last

    @torch.no_grad()
    def run(self, number: int, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the Linear reads in a batch."""
        self.running.resumed, self.running.recorded = self.outputs.get(number), None
        try:
            self.model(**inputs)
        except _ArrivedError:
            pass
        else:
            raise RuntimeError("a pass went by the Linear that it was to end at")
        if self.running.recorded is not None:
            self.outputs[number] = self.running.recorded
        seen: Tensor = self.running.seen
        return seen

    def _record(self, _: nn.Module, __: Any, output: Any) -> None:
        self.running.recorded = _copied(output)

    def _arrive(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.running.seen = inputs[0]
        raise _ArrivedError


def _copied(output: Any) -> Any:
    """A layer's output, for a pass that may write into it."""
    if isinstance(output, tuple):
        return tuple(map(_copied, output))
    return output.clone() if isinstance(output, Tensor) else output
