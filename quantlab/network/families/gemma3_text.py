"""Gemma 3, text: Llama's modules with a norm after each sublayer too, soft caps and sliding windows."""

from quantlab.network.builders import pre_norm

FAMILY = pre_norm(
    layers="model.layers",
    attention="self_attn",
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    added=("post_attention_layernorm", "post_feedforward_layernorm"),
    out="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    final="model.norm",
    heads=("lm_head", "score"),
)
