"""MPNet: BERT's layers with relative positions, which its own attention adds to the scores."""

from quantlab.network.builders import embeddings, post_norm

FAMILY = post_norm(
    layers="mpnet.encoder.layer",
    attention="attention.attn",
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    out="attention.attn.o",
    norms=("attention.LayerNorm", "output.LayerNorm"),
    up="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    down="output.dense",
    embed=embeddings("mpnet.embeddings.LayerNorm"),
    dense="classifier.dense",
    heads=("classifier.out_proj",),
)
