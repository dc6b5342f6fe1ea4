"""Taps: how a named tensor of a model is reached, changed while it runs, and read without its padding.

A tap's function gets the tensor and returns the one that the model goes on with, of the same shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantlab.config.checks import nearest
from quantlab.network.attention import TensorFunction
from quantlab.network.rerouting import attention_tap
from quantlab.network.widths import head_width, key_heads, width

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Tap(ABC):
    """How one tensor of a model is reached, at or inside the module of this path."""

    at: ClassVar[str]  # the kind's name in JSON
    axis: ClassVar[int] = -1  # the dimension of the channels, counted from the last
    overwrites: ClassVar[bool] = True  # whether the function may write into the tensor that it gets

    module: str

    @abstractmethod
    def attach(self, model: PreTrainedModel, function: TensorFunction) -> AbstractContextManager[None]:
        """Passes the tensor through the function until the exit.

        Raises AttributeError if the module does not exist.
        """

    @abstractmethod
    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        """The number of channels, from the tap's module and the model's config."""

    def elements(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The tensor as (elements, channels), without padding.

        ``mask`` (batch, tokens) is False for padding; None keeps all. Some networks flatten (batch, tokens)
        to one dimension. Tensors without tokens (a pooled head's) have no padding.
        """
        if mask is None or bool(mask.all()):
            return x.reshape(-1, x.shape[-1])
        if x.ndim == 2:
            return x[mask.flatten()] if len(x) == mask.numel() else x
        return x[mask]

    def to_json(self) -> dict[str, str]:
        """The module's path and the kind; :func:`tap_of` reads it back."""
        return {"module": self.module, "at": self.at}


class ModuleInput(Tap):
    """The first argument of a module, or its ``hidden_states`` by name.

    Others may read the tensor too, so it is never overwritten.
    """

    at = "input"
    overwrites = False

    def attach(self, model: PreTrainedModel, function: TensorFunction) -> AbstractContextManager[None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if inputs:
                return (function(inputs[0]), *inputs[1:]), named
            return (), {**named, "hidden_states": function(named["hidden_states"])}

        module = model.get_submodule(self.module)
        return _until_exit(module.register_forward_pre_hook(hook, with_kwargs=True))

    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        return width(module, config) if not isinstance(module, nn.Linear) else module.in_features


class ModuleOutput(Tap):
    """What a module returns, or the first of several things that it returns."""

    at = "output"

    def attach(self, model: PreTrainedModel, function: TensorFunction) -> AbstractContextManager[None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

        return _until_exit(model.get_submodule(self.module).register_forward_hook(hook))

    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        return width(module, config)


class ResidualSum(Tap):
    """The residual sum of a pre-norm block: what its norm reads, and what the stream carries on.

    The two are one tensor, which is changed in place before the norm runs.
    """

    at = "residual"

    def attach(self, model: PreTrainedModel, function: TensorFunction) -> AbstractContextManager[None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            y = function(x.clone() if torch.is_grad_enabled() else x)  # the gradient of y may need x
            if y is not x:
                x.copy_(y)

        return _until_exit(model.get_submodule(self.module).register_forward_pre_hook(hook))

    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        return width(module, config)


class Pixels(ModuleInput):
    """The images that a convolution reads, (batch, colours, height, width)."""

    at = "pixels"
    axis = -3

    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        assert isinstance(module, nn.Conv2d)
        return module.in_channels

    def elements(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _InAttention(Tap):
    """A tensor inside the attention function of an attention module."""

    def attach(self, model: PreTrainedModel, function: TensorFunction) -> AbstractContextManager[None]:
        return attention_tap(model, self.module, self.at, function)


class Query(_InAttention):
    """The queries that attention gets, after rotary embedding, as (batch, tokens, channels)."""

    at = "query"

    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        return int(config.num_attention_heads) * head_width(config)


class Key(_InAttention):
    """The keys that attention gets: after rotary embedding, before grouped heads are repeated.

    A cache of keys and values holds them. The function sees (batch, tokens, channels).
    """

    at = "key"

    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        return key_heads(config) * head_width(config)


class Value(Key):
    """The values that attention gets, before grouped heads are repeated; (batch, tokens, channels)."""

    at = "value"


@dataclass(frozen=True)
class Scores(_InAttention):
    """The scores before the mask is added, (batch, heads, queries, keys). Channels are the heads.

    ``causal``: the network masks keys after the query, so these are no valid elements.
    """

    at = "scores"
    axis = -3

    causal: bool = field(default=False, compare=False)

    def channels(self, module: nn.Module, config: PretrainedConfig) -> int:
        return int(config.num_attention_heads)

    def elements(self, x: Tensor, mask: Tensor | None) -> Tensor:
        padded = mask is not None and not bool(mask.all())
        y = x.permute(0, 2, 3, 1)
        if not padded and not self.causal:
            return y.reshape(-1, y.shape[-1])
        kept = torch.ones(y.shape[:3], dtype=torch.bool, device=x.device)
        if mask is not None:
            kept &= mask[:, -y.shape[1] :, None] & mask[:, None, :]
        return y[kept.tril(y.shape[2] - y.shape[1]) if self.causal else kept]


class Probs(Scores):
    """The probabilities after the softmax, before dropout, (batch, heads, queries, keys)."""

    at = "probs"


class DroppedProbs(Probs):
    """The probabilities that a dropout module reads, inside attention that no registered function makes."""

    at = "dropped_probs"

    def attach(self, model: PreTrainedModel, function: TensorFunction) -> AbstractContextManager[None]:
        return ModuleInput(self.module).attach(model, function)


class RelativePositions(ModuleInput):
    """Embeddings of relative positions that a module reads, (positions, channels), alike for all texts."""

    at = "positions"

    def elements(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().elements(x, None)


_OUTSIDE = (ModuleInput, ModuleOutput, ResidualSum, Pixels, RelativePositions)
_KINDS: tuple[type[Tap], ...] = (*_OUTSIDE, Query, Key, Value, Scores, Probs, DroppedProbs)
KINDS = {kind.at: kind for kind in _KINDS}


def tap_of(module: str, at: str) -> Tap:
    """The tap of a kind's name. Raises ValueError for a name that no kind has."""
    if at not in KINDS:
        raise ValueError(f"a tap is at one of {', '.join(KINDS)}; got {at!r}{nearest(at, KINDS)}")
    return KINDS[at](module)


@contextmanager
def tapped(model: PreTrainedModel, functions: Mapping[Tap, TensorFunction]) -> Iterator[None]:
    """Passes each tapped tensor through its function until the exit; the model goes on with the result.

    Raises AttributeError if a module does not exist.
    """
    with ExitStack() as stack:
        for tap, function in functions.items():
            stack.enter_context(tap.attach(model, function))
        yield


@contextmanager
def _until_exit(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
