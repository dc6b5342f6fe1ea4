"""BERT and MiniLM: post-norm encoders; residual sums are the inputs of their LayerNorms."""

from collections.abc import Mapping

from quantlab.network.architecture import Family, FeedForward, Taps, one_tap
from quantlab.network.taps import ModuleInput, ModuleOutput, Probs, Scores

LAYER: Mapping[str, Taps] = {
    "attn.in": Taps(read_at=ModuleInput("attention.self")),
    "attn.query": one_tap(ModuleOutput("attention.self.query")),
    "attn.key": one_tap(ModuleOutput("attention.self.key")),
    "attn.value": one_tap(ModuleOutput("attention.self.value")),
    "attn.scores": Taps(made_at=Scores("attention.self")),
    "attn.probs": one_tap(Probs("attention.self")),
    "attn.context": one_tap(ModuleInput("attention.output.dense")),
    "attn.out": Taps(made_at=ModuleOutput("attention.output.dense")),
    "attn.sum": Taps(made_at=ModuleInput("attention.output.LayerNorm")),
    "ffn.in": Taps(
        made_at=ModuleOutput("attention.output.LayerNorm"), read_at=ModuleInput("intermediate.dense")
    ),
    "ffn.mid": one_tap(ModuleInput("output.dense")),
    "ffn.out": Taps(made_at=ModuleOutput("output.dense")),
    "ffn.sum": Taps(made_at=ModuleInput("output.LayerNorm")),
    "layer.out": Taps(made_at=ModuleOutput("output.LayerNorm")),
}
FEED_FORWARD = FeedForward("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")


def embeddings(prefix: str) -> Mapping[str, Taps]:
    """The sum of the embeddings, and its LayerNorm's output."""
    norm = f"{prefix}.embeddings.LayerNorm"
    return {"sum": Taps(made_at=ModuleInput(norm)), "out": Taps(made_at=ModuleOutput(norm))}


def head(dense: str, classifier: str) -> Mapping[str, Taps]:
    """A dense layer on the first token, its activation, and the classifier."""
    return {
        "in": Taps(read_at=ModuleInput(dense)),
        "mid": one_tap(ModuleInput(classifier)),
        "out": Taps(made_at=ModuleOutput(classifier)),
    }


FAMILY = Family(
    layers="bert.encoder.layer",
    embed=embeddings("bert"),
    layer=LAYER,
    head=head("bert.pooler.dense", "classifier"),
    feed_forward=FEED_FORWARD,
)
