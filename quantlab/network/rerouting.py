"""Runs a model's attention through :func:`~quantlab.network.attention.attention`, for taps or for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from quantlab.network.attention import NAME, TAPS, TensorFunction, attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _mpnet_forward(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **_: Any,
) -> tuple[Tensor | None, ...]:
    """``MPNetSelfAttention.forward`` through :func:`attention`; the mask bears the position bias."""
    by_head = (*hidden_states.shape[:-1], -1, module.attention_head_size)
    query, key, value = (
        linear(hidden_states).view(by_head).transpose(1, 2) for linear in (module.q, module.k, module.v)
    )
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else position_bias + attention_mask
    context, probs = attention(module, query, key, value, attention_mask, dropout=module.dropout.p)
    out = module.o(context.flatten(2))
    return (out, probs) if output_attentions else (out,)


# Attention modules, by their class, that compute attention themselves and not by a registered function.
OWN_ATTENTION: Mapping[str, Callable[..., Any]] = {"MPNetSelfAttention": _mpnet_forward}


@cache
def _register() -> None:
    """Registers :func:`attention` with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    # Without a mask function of the same name, transformers silently passes attention_mask=None to layers.
    AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def attention_tap(model: PreTrainedModel, path: str, at: str, function: TensorFunction) -> Iterator[None]:
    """Passes a tensor of an attention module's function through ``function`` until the exit.

    ``at`` is "query", "key" or "value", (batch, tokens, heads * width), or "scores" or "probs", (batch,
    heads, tokens, tokens). The model's attention meanwhile runs through :func:`attention`. Raises ValueError
    if the model's attention cannot.
    """
    module = model.get_submodule(path)
    with _rerouted(model, module):
        before: Mapping[str, TensorFunction] | None = vars(module).get(TAPS)
        inner = (before or {}).get(at)
        vars(module)[TAPS] = {**(before or {}), at: function if inner is None else _both(inner, function)}
        try:
            yield
        finally:
            del vars(module)[TAPS]
            if before is not None:
                vars(module)[TAPS] = before


def _both(first: TensorFunction, second: TensorFunction) -> TensorFunction:
    return lambda x: second(first(x))


@contextmanager
def _rerouted(model: PreTrainedModel, module: nn.Module) -> Iterator[None]:
    """Runs a module's attention through :func:`attention` until the exit, if it does not already."""
    before = model.config._attn_implementation
    own = type(module).__name__ in OWN_ATTENTION
    if "forward" in vars(module) if own else before == NAME:
        yield
        return
    reroute(model, module)
    try:
        yield
    finally:
        if own:
            del vars(module)["forward"]
        else:
            model.set_attn_implementation(before)


def reroute(model: PreTrainedModel, module: nn.Module) -> None:
    """Runs a module's attention through :func:`attention` from now on. Raises ValueError if it cannot."""
    check_reroutable(model, module)
    forward = OWN_ATTENTION.get(type(module).__name__)
    if forward is not None:
        vars(module)["forward"] = partial(forward, module)
    else:
        _register()
        model.set_attn_implementation(NAME)


def check_reroutable(model: PreTrainedModel, module: nn.Module) -> None:
    """Raises ValueError if a module computes attention where no function of quantlab's reaches."""
    if type(module).__name__ not in OWN_ATTENTION and not model._can_set_attn_implementation():
        raise ValueError(f"{type(module).__name__} computes attention by itself: no tap reaches inside")
