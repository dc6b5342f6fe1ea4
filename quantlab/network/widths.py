"""How many channels a module returns, from its own sizes or the model's config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def is_norm(module: nn.Module) -> bool:
    """True for LayerNorm and its kin, such as RMSNorm: one weight a channel."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and type(module).__name__.endswith("Norm")


def width(module: nn.Module, config: PretrainedConfig) -> int:
    """The channels of what a module returns; a norm reads as many."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    if is_norm(module):
        return len(module.weight)  # type: ignore[arg-type]
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return int(config.hidden_size)


def key_heads(config: PretrainedConfig) -> int:
    """The heads of keys and values; grouped heads are fewer than the queries'."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_width(config: PretrainedConfig) -> int:
    """The channels of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
