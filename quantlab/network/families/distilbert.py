"""DistilBERT: BERT's layers under other names, without token types and pooler."""

from quantlab.network.architecture import Family, FeedForward, Taps, one_tap
from quantlab.network.families.bert import embeddings, head
from quantlab.network.taps import ModuleInput, ModuleOutput, Probs, Scores

FAMILY = Family(
    layers="distilbert.transformer.layer",
    embed=embeddings("distilbert"),
    layer={
        "attn.in": Taps(read_at=ModuleInput("attention")),
        "attn.query": one_tap(ModuleOutput("attention.q_lin")),
        "attn.key": one_tap(ModuleOutput("attention.k_lin")),
        "attn.value": one_tap(ModuleOutput("attention.v_lin")),
        "attn.scores": Taps(made_at=Scores("attention")),
        "attn.probs": one_tap(Probs("attention")),
        "attn.context": one_tap(ModuleInput("attention.out_lin")),
        "attn.out": Taps(made_at=ModuleOutput("attention.out_lin")),
        "attn.sum": Taps(made_at=ModuleInput("sa_layer_norm")),
        "ffn.in": Taps(made_at=ModuleOutput("sa_layer_norm"), read_at=ModuleInput("ffn.lin1")),
        "ffn.mid": one_tap(ModuleInput("ffn.lin2")),
        "ffn.out": Taps(made_at=ModuleOutput("ffn.lin2")),
        "ffn.sum": Taps(made_at=ModuleInput("output_layer_norm")),
        "layer.out": Taps(made_at=ModuleOutput("output_layer_norm")),
    },
    head=head("pre_classifier", "classifier"),
    feed_forward=FeedForward("ffn.lin1", "ffn.activation", "ffn.lin2"),
)
