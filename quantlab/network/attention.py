"""An attention function with taps on all that it reads and makes, registered with transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.kernels.attend import attend
from quantlab.kernels.snapper import Snapper

NAME = "quantlab"  # of the attention function in transformers
TAPS = "_quantlab_taps"  # attribute of an attention module: its functions by the kind of tap
CLIP = "_quantlab_clip"  # attribute of an attention module: what its probabilities pass after the softmax
# Arguments that transformers passes to every attention function, and that do not change what it computes.
NO_ATTENTION = frozenset(
    {
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_cache",
        "cache_position",
        "position_ids",
        "num_items_in_batch",
        "token_type_ids",
    }
)

TensorFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CountedQuantizer:
    """A site's quantizer that counts its runs in ``calls``, by site.

    Counts are exact if batches run one after another. If they run side by side, increments may be lost; only
    zero and not zero can be told apart.

    It wraps the quantizer of the simulated engine, which is a :class:`Snapper` or a float format's ``snap``,
    or that of the integer engine, an ``EncodingQuantizer`` around a ``Snapper``. Fused kernels compute what
    several taps do in one call. So they look inside the wrappers for the grids, and :meth:`count` the runs.
    """

    site: str
    function: TensorFunction
    calls: dict[str, int]

    def __call__(self, x: Tensor) -> Tensor:
        self.count()
        return self.function(x)

    def count(self) -> None:
        """Counts one run."""
        self.calls[self.site] += 1


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention ``softmax(scaling q k^T + mask) v``, with taps.

    The query is (batch, heads, tokens, width); key and value may have fewer heads, each of which serves as
    many heads of the query that follow one another. Returns (batch, tokens, heads, width) and the
    probabilities. ``softcap`` c bounds the scores to ``c tanh(scores / c)``.

    Equal to transformers' eager attention to the bit. If scores and probabilities are tapped by quantizers of
    integer grids alone, a fused kernel runs: it is equal up to the order of sums and returns None for the
    probabilities.

    A module's function :data:`CLIP` changes the probabilities before they are tapped; no kernel fuses it.

    Scores are tapped before the mask is added, because the mask's huge numbers would ruin any range. The mask
    that transformers makes for this function bears causality and sliding windows. Raises ValueError if they
    are asked for without a mask, and for arguments that would change attention and are not implemented, as
    sinks.
    """
    asked = {"sliding_window": sliding_window, "is_causal": is_causal}
    unmasked = asked if attention_mask is None and query.shape[2] > 1 else {}
    _refuse_unknown(module, others, unmasked)
    taps: Mapping[str, TensorFunction] = getattr(module, TAPS, {})
    query, key, value = (
        _by_token(taps[at], x) if at in taps else x
        for at, x in (("query", query), ("key", key), ("value", value))
    )
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    clip: TensorFunction | None = getattr(module, CLIP, None)
    if not module.training and softcap is None and clip is None:
        context = _on_grids(query, key, value, attention_mask, scaling, taps)
        if context is not None:
            return context, None
    times = query.shape[1] // key.shape[1]
    key, value = _repeated(key, times), _repeated(value, times)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if "scores" in taps:
        scores = taps["scores"](scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = nn.functional.softmax(scores, dim=-1)
    if clip is not None:
        probs = clip(probs)
    if "probs" in taps:
        probs = taps["probs"](probs)
    dropped = nn.functional.dropout(probs, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), probs


def _refuse_unknown(module: nn.Module, others: Mapping[str, Any], unmasked: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that are not implemented; ``unmasked`` are so where no mask bears
    them."""
    unknown = [name for name, value in others.items() if name not in NO_ATTENTION and not _is_off(value)]
    unknown += [f"{name} without a mask" for name, value in unmasked.items() if not _is_off(value)]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} passes {', '.join(sorted(unknown))} to its attention, which quantlab's "
            "attention does not implement: the network's answers would be wrong"
        )


def _is_off(value: Any) -> bool:
    return value is None or value is False


def _by_token(function: TensorFunction, x: Tensor) -> Tensor:
    """Passes (batch, heads, tokens, width) through the function as (batch, tokens, heads * width)."""
    by_token = x.transpose(1, 2)
    return function(by_token.flatten(2)).view(by_token.shape).transpose(1, 2)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Repeats every head of (batch, heads, tokens, width)."""
    return x if times == 1 else x.repeat_interleave(times, dim=1)


def _on_grids(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    taps: Mapping[str, TensorFunction],
) -> Tensor | None:
    """:func:`attention` in one fused kernel; None if scores or probabilities have a tap without an integer
    grid, or no tap, or the kernel refuses."""
    inside = {at: tap for at, tap in taps.items() if at in ("scores", "probs")}
    counted = {at: tap for at, tap in inside.items() if isinstance(tap, CountedQuantizer)}
    grids = {at: tap.function for at, tap in counted.items() if isinstance(tap.function, Snapper)}
    if not grids or len(grids) < len(inside):
        return None
    context = attend(query, key, value, mask, scaling, grids.get("scores"), grids.get("probs"))
    if context is not None:
        for tap in counted.values():
            tap.count()
    return context
