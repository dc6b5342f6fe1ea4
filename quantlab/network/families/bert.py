"""BERT and MiniLM: post-norm encoders; residual sums are the inputs of their LayerNorms."""

from collections.abc import Mapping

from quantlab.network.architecture import Family, FeedForward, Taps, one_tap
from quantlab.network.sites import Tap

LAYER: Mapping[str, Taps] = {
    "attn.in": Taps(read_at=Tap("attention.self", "input")),
    "attn.query": one_tap("attention.self.query", "output"),
    "attn.key": one_tap("attention.self.key", "output"),
    "attn.value": one_tap("attention.self.value", "output"),
    "attn.scores": Taps(made_at=Tap("attention.self", "scores")),
    "attn.probs": one_tap("attention.self", "probs"),
    "attn.context": one_tap("attention.output.dense", "input"),
    "attn.out": Taps(made_at=Tap("attention.output.dense", "output")),
    "attn.sum": Taps(made_at=Tap("attention.output.LayerNorm", "input")),
    "ffn.in": Taps(
        made_at=Tap("attention.output.LayerNorm", "output"), read_at=Tap("intermediate.dense", "input")
    ),
    "ffn.mid": one_tap("output.dense", "input"),
    "ffn.out": Taps(made_at=Tap("output.dense", "output")),
    "ffn.sum": Taps(made_at=Tap("output.LayerNorm", "input")),
    "layer.out": Taps(made_at=Tap("output.LayerNorm", "output")),
}
FEED_FORWARD = FeedForward("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")


def embeddings(prefix: str) -> Mapping[str, Taps]:
    """The sum of the embeddings, and its LayerNorm's output."""
    norm = f"{prefix}.embeddings.LayerNorm"
    return {"sum": Taps(made_at=Tap(norm, "input")), "out": Taps(made_at=Tap(norm, "output"))}


def head(dense: str, classifier: str) -> Mapping[str, Taps]:
    """A dense layer on the first token, its activation, and the classifier."""
    return {
        "in": Taps(read_at=Tap(dense, "input")),
        "mid": one_tap(classifier, "input"),
        "out": Taps(made_at=Tap(classifier, "output")),
    }


FAMILY = Family(
    layers="bert.encoder.layer",
    embed=embeddings("bert"),
    layer=LAYER,
    head=head("bert.pooler.dense", "classifier"),
    feed_forward=FEED_FORWARD,
)
