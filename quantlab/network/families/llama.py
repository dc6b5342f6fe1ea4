"""Llama and the decoders with its modules: pre-norm, rotary embedding, grouped heads, gated feed-forward."""

from quantlab.network.builders import pre_norm

FAMILY = pre_norm(
    layers="model.layers",
    attention="self_attn",
    norms=("input_layernorm", "post_attention_layernorm"),
    out="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    final="model.norm",
    heads=("lm_head", "score"),
)
