"""An attention function whose scores and probabilities can be tapped, registered with transformers by
name."""

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

NAME = "quantlab"
TAPS = "_quantlab_taps"
# What transformers hands to every attention function along with what that one computes with.
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
    """A site's quantizer, and how often each site's has run: exactly if batches run one after another, at
    least once if they run side by side."""

    site: str
    function: TensorFunction
    calls: dict[str, int]

    def __call__(self, x: Tensor) -> Tensor:
        self.count()
        return self.function(x)

    def count(self) -> None:
        """One more run."""
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
    """Scaled dot-product attention over (batch, heads, tokens, width), equal to transformers' eager one to
    the bit; and up to the order of sums, without its probabilities, where what taps it are grids.

    Scores are tapped before the mask is added: the mask is no activation, and its huge numbers would ruin any
    range. Raises ValueError for arguments that change attention and that it does not know: soft caps, sliding
    windows, sinks.
    """
    unknown = [name for name, value in others.items() if name not in NO_ATTENTION and not _is_off(value)]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} hands its attention {', '.join(sorted(unknown))}, which "
            f"quantlab's attention "
            "does not compute: the network's answers would be another one's"
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
    """:func:`attention` in one pass, where what taps it are grids."""
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
    """Makes :func:`attention` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    # Without an entry of the same name here, transformers hands every layer attention_mask=None without a
    # word.
    AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def tapped_attention(
    model: PreTrainedModel, taps: Mapping[str, Mapping[str, TensorFunction]]
) -> Iterator[None]:
    """Runs the model's attention through :func:`attention`, with the functions for each module path, until
    the exit."""
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
