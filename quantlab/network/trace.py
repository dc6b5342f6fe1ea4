"""One forward pass that notes which Linears read which tensor, and what else reads it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantlab.network.taps import Key, Probs, Query, Scores, Tap, Value, tapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INSIDE = (Query, Key, Value, Scores, Probs)
TOKENS = 4


@dataclass
class Trace:
    """What one forward pass did. Tensors go by the number of their object, which no other tensor gets."""

    # paths of Linears, and of attention modules when their query is read
    order: list[str] = field(default_factory=list)
    reads: dict[str, Tensor] = field(default_factory=dict)  # the first argument of every module, by path
    runs: Counter[str] = field(default_factory=Counter)  # of every module
    # the modules in which functions other than a Linear's product read a tensor
    others: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    inside: dict[Tap, Tensor] = field(default_factory=dict)  # what the taps inside attention saw


class _Readers(TorchFunctionMode):
    """Notes for every tensor in which modules functions other than a Linear's product read it."""

    def __init__(self, trace: Trace, stack: Sequence[str]):
        super().__init__()
        self.trace, self.stack, self.kept = trace, stack, list[Tensor]()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not nn.functional.linear and any(True for _ in _flat([result])):
            for x in _flat([*args, *(kwargs or {}).values()]):
                if x is not result:
                    self.kept.append(x)
                    self.trace.others[id(x)].append(self.stack[-1] if self.stack else "")
        return result


def _flat(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _flat(value)


@torch.inference_mode()
def trace(model: PreTrainedModel, inputs: Mapping[str, Tensor], attention: Sequence[str]) -> Trace:
    """Runs the model once, on any device, "meta" included.

    ``attention``: paths of modules whose attention function is tapped. Raises what the pass raises.
    """
    seen, stack = Trace(), list[str]()

    def enter(path: str, module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        stack.append(path)
        first = positional[0] if positional else named.get("hidden_states")
        seen.runs[path] += 1
        if isinstance(first, Tensor):
            seen.reads[path] = first
        if isinstance(module, nn.Linear):
            seen.order.append(path)

    def leave(*_: Any) -> None:
        stack.pop()

    def look(tap: Tap, x: Tensor) -> Tensor:
        if tap.at == Query.at:
            seen.order.append(tap.module)
        seen.runs[f"{tap.module} {tap.at}"] += 1
        seen.inside[tap] = x
        return x

    taps = [kind(path) for path in attention for kind in INSIDE]
    with ExitStack() as exits:
        exits.enter_context(tapped(model, {tap: partial(look, tap) for tap in taps}))
        for path, module in model.named_modules():
            hook = partial(enter, path)
            exits.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            exits.callback(module.register_forward_hook(leave).remove)
        with model.device, _Readers(seen, stack):
            model(**inputs)
    return seen


def tiny_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """One image, or one text of some tokens without padding, on the model's device."""
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size
        shape = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.zeros(1, config.num_channels, *shape, device=model.device)}
    ids = torch.ones(1, TOKENS, dtype=torch.long, device=model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
