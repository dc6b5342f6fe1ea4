"""An attention function with taps on its scores and probabilities, registered with transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab.kernels.attend import attend
from quantlab.kernels.snapper import Snapper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "quantlab"  # of the attention function in transformers
TAPS = "_quantlab_taps"  # attribute of an attention module: its functions by "scores" and "probs"
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
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention ``softmax(scaling q k^T + mask) v``, with taps.

    Takes (batch, heads, tokens, width) and returns (batch, tokens, heads, width) with the probabilities.

    Equal to transformers' eager attention to the bit. If all taps are quantizers of integer grids, a fused
    kernel runs: it is equal up to the order of sums and returns None for the probabilities.

    Scores are tapped before the mask is added, because the mask's huge numbers would ruin any range. Raises
    ValueError for arguments that would change attention and are not implemented, as soft caps, sliding
    windows and sinks.
    """
    unknown = [name for name, value in others.items() if name not in NO_ATTENTION and not _is_off(value)]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} passes {', '.join(sorted(unknown))} to its attention, which quantlab's "
            "attention does not implement: the network's answers would be wrong"
        )
    taps: Mapping[str, TensorFunction] = getattr(module, TAPS, {})
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    context = None if module.training else _on_grids(query, key, value, attention_mask, scaling, taps)
    if context is not None:
        return context, None
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if "scores" in taps:
        scores = taps["scores"](scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = nn.functional.softmax(scores, dim=-1)
    if "probs" in taps:
        probs = taps["probs"](probs)
    dropped = nn.functional.dropout(probs, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), probs


def _is_off(value: Any) -> bool:
    return value is None or value is False


def _on_grids(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    taps: Mapping[str, TensorFunction],
) -> Tensor | None:
    """:func:`attention` in one fused kernel; None if a tap has no integer grid or the kernel refuses."""
    counted = {at: tap for at, tap in taps.items() if isinstance(tap, CountedQuantizer)}
    grids = {at: tap.function for at, tap in counted.items() if isinstance(tap.function, Snapper)}
    if not grids or len(grids) < len(taps):
        return None
    context = attend(query, key, value, mask, scaling, grids.get("scores"), grids.get("probs"))
    if context is not None:
        for tap in counted.values():
            tap.count()
    return context


@cache
def _register() -> None:
    """Registers :func:`attention` with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    # Without a mask function of the same name, transformers silently passes attention_mask=None to layers.
    AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def tapped_attention(
    model: PreTrainedModel, taps: Mapping[str, Mapping[str, TensorFunction]]
) -> Iterator[None]:
    """Runs the model's attention through :func:`attention` until the exit.

    ``taps`` are the functions for "scores" and "probs", by the attention module's path.
    """
    if not taps:
        yield
        return
    _register()
    before = model.config._attn_implementation
    modules = {path: model.get_submodule(path) for path in taps}
    try:
        model.set_attn_implementation(NAME)
        for path, module in modules.items():
            setattr(module, TAPS, taps[path])
        yield
    finally:
        for module in modules.values():
            if hasattr(module, TAPS):
                delattr(module, TAPS)
        model.set_attn_implementation(before)
