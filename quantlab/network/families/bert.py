"""BERT and MiniLM: post-norm encoders; residual sums are the inputs of their LayerNorms."""

from quantlab.network.builders import embeddings, post_norm
from quantlab.network.family import Family


def bert_like(base: str, dense: str, classifier: str) -> Family:
    """A network with BERT's layers; ``dense`` and ``classifier`` are the head's Linears."""
    return post_norm(
        layers=f"{base}.encoder.layer",
        attention="attention.self",
        qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
        out="attention.output.dense",
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        embed=embeddings(f"{base}.embeddings.LayerNorm"),
        dense=dense,
        heads=(classifier,),
    )


FAMILY = bert_like("bert", "bert.pooler.dense", "classifier")
