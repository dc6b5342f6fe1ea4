"""GPT-NeoX and Pythia: one Linear for queries, keys and values; most add both sublayers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlab.network.builders import pre_norm
from quantlab.network.family import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def family(config: PretrainedConfig) -> Family:
    """The table; ``use_parallel_residual`` decides whether there is a sum after attention."""
    return pre_norm(
        layers="gpt_neox.layers",
        attention="attention",
        norms=("input_layernorm", "post_attention_layernorm"),
        out="attention.dense",
        up="mlp.dense_h_to_4h",
        activation="mlp.act",
        down="mlp.dense_4h_to_h",
        final="gpt_neox.final_layer_norm",
        heads=("lm_head", "score"),
        parallel=bool(config.use_parallel_residual),
    )
