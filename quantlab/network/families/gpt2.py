"""GPT-2: pre-norm decoder with one Linear for queries, keys and values."""

from quantlab.network.builders import pre_norm

FAMILY = pre_norm(
    layers="transformer.h",
    attention="attn",
    norms=("ln_1", "ln_2"),
    out="attn.c_proj",
    up="mlp.c_fc",
    activation="mlp.act",
    down="mlp.c_proj",
    final="transformer.ln_f",
    heads=("lm_head", "score"),
)
