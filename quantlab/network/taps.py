"""Taps: hooks that pass a model's tensors through functions, and the valid elements of what they see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from quantlab.network.attention import TensorFunction, tapped_attention
from quantlab.network.sites import Site, Tap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def tapped(model: PreTrainedModel, functions: Mapping[Tap, TensorFunction]) -> Iterator[None]:
    """Passes each tapped tensor through its function until the exit; the model goes on with the result.

    Raises AttributeError if a module does not exist.
    """
    inside: dict[str, dict[str, TensorFunction]] = defaultdict(dict)
    with ExitStack() as stack:
        for tap, function in functions.items():
            if tap.at in ("scores", "probs"):
                inside[tap.module][tap.at] = function
            else:
                stack.enter_context(_hooked(model.get_submodule(tap.module), tap.at, function))
        stack.enter_context(tapped_attention(model, inside))
        yield


def valid_elements(x: Tensor, mask: Tensor | None, site: Site) -> Tensor:
    """A site's tensor as (elements, channels), without padding.

    ``mask`` (batch, tokens) is False for padding; None keeps all. Of scores and probabilities (batch, heads,
    tokens, tokens) padded queries and padded keys are dropped. Tensors without a token dimension (the head's)
    have no padding.
    """
    if site.tap.at in ("scores", "probs"):
        x = x.permute(0, 2, 3, 1)
        kept = None if mask is None else mask[:, :, None] & mask[:, None, :]
    else:
        kept = mask if x.ndim == 3 else None
    if kept is None or bool(kept.all()):
        return x.reshape(-1, x.shape[-1])
    return x[kept]


@contextmanager
def _hooked(module: nn.Module, at: str, function: TensorFunction) -> Iterator[None]:
    """Passes the module's first input or its output through the function until the exit."""
    hook: Callable[..., Any]
    if at == "input":

        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (function(inputs[0]), *inputs[1:])

        handle = module.register_forward_pre_hook(hook)
    else:

        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            return function(output)

        handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
