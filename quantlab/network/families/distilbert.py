"""DistilBERT: BERT's layers under other names, without token types and pooler."""

from quantlab.network.builders import embeddings, post_norm

FAMILY = post_norm(
    layers="distilbert.transformer.layer",
    attention="attention",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    norms=("sa_layer_norm", "output_layer_norm"),
    up="ffn.lin1",
    activation="ffn.activation",
    down="ffn.lin2",
    embed=embeddings("distilbert.embeddings.LayerNorm"),
    dense="pre_classifier",
    heads=("classifier",),
)
