"""DistilBERT: BERT's layers under other names, without token types and pooler."""

from quantlab.network.architecture import Family, FeedForward, Taps, one_tap
from quantlab.network.families.bert import embeddings, head
from quantlab.network.sites import Tap

FAMILY = Family(
    layers="distilbert.transformer.layer",
    embed=embeddings("distilbert"),
    layer={
        "attn.in": Taps(read_at=Tap("attention", "input")),
        "attn.query": one_tap("attention.q_lin", "output"),
        "attn.key": one_tap("attention.k_lin", "output"),
        "attn.value": one_tap("attention.v_lin", "output"),
        "attn.scores": Taps(made_at=Tap("attention", "scores")),
        "attn.probs": one_tap("attention", "probs"),
        "attn.context": one_tap("attention.out_lin", "input"),
        "attn.out": Taps(made_at=Tap("attention.out_lin", "output")),
        "attn.sum": Taps(made_at=Tap("sa_layer_norm", "input")),
        "ffn.in": Taps(made_at=Tap("sa_layer_norm", "output"), read_at=Tap("ffn.lin1", "input")),
        "ffn.mid": one_tap("ffn.lin2", "input"),
        "ffn.out": Taps(made_at=Tap("ffn.lin2", "output")),
        "ffn.sum": Taps(made_at=Tap("output_layer_norm", "input")),
        "layer.out": Taps(made_at=Tap("output_layer_norm", "output")),
    },
    head=head("pre_classifier", "classifier"),
    feed_forward=FeedForward("ffn.lin1", "ffn.activation", "ffn.lin2"),
)
