"""DistilBERT: BERT's layers under other names, without token types and pooler."""

from quantlab.network.architecture import Family, FeedForward, Row, both
from quantlab.network.families.bert import embeddings, head
from quantlab.network.sites import Tap

FAMILY = Family(
    layers="distilbert.transformer.layer",
    embed=embeddings("distilbert"),
    layer={
        "attn.in": Row(operand=Tap("attention", "input")),
        "attn.query": both("attention.q_lin", "output"),
        "attn.key": both("attention.k_lin", "output"),
        "attn.value": both("attention.v_lin", "output"),
        "attn.scores": Row(Tap("attention", "scores")),
        "attn.probs": both("attention", "probs"),
        "attn.context": both("attention.out_lin", "input"),
        "attn.out": Row(Tap("attention.out_lin", "output")),
        "attn.sum": Row(Tap("sa_layer_norm", "input")),
        "ffn.in": Row(Tap("sa_layer_norm", "output"), Tap("ffn.lin1", "input")),
        "ffn.mid": both("ffn.lin2", "input"),
        "ffn.out": Row(Tap("ffn.lin2", "output")),
        "ffn.sum": Row(Tap("output_layer_norm", "input")),
        "layer.out": Row(Tap("output_layer_norm", "output")),
    },
    head=head("pre_classifier", "classifier"),
    feed_forward=FeedForward("ffn.lin1", "ffn.activation", "ffn.lin2"),
)
