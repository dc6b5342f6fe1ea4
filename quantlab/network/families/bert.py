"""BERT and MiniLM: post-norm encoders; residual sums are the inputs of their LayerNorms."""

from collections.abc import Mapping

from quantlab.network.architecture import Family, FeedForward, Row, both
from quantlab.network.sites import Tap

LAYER: Mapping[str, Row] = {
    "attn.in": Row(operand=Tap("attention.self", "input")),
    "attn.query": both("attention.self.query", "output"),
    "attn.key": both("attention.self.key", "output"),
    "attn.value": both("attention.self.value", "output"),
    "attn.scores": Row(Tap("attention.self", "scores")),
    "attn.probs": both("attention.self", "probs"),
    "attn.context": both("attention.output.dense", "input"),
    "attn.out": Row(Tap("attention.output.dense", "output")),
    "attn.sum": Row(Tap("attention.output.LayerNorm", "input")),
    "ffn.in": Row(Tap("attention.output.LayerNorm", "output"), Tap("intermediate.dense", "input")),
    "ffn.mid": both("output.dense", "input"),
    "ffn.out": Row(Tap("output.dense", "output")),
    "ffn.sum": Row(Tap("output.LayerNorm", "input")),
    "layer.out": Row(Tap("output.LayerNorm", "output")),
}
FEED_FORWARD = FeedForward("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")


def embeddings(prefix: str) -> Mapping[str, Row]:
    """The sum of the embeddings, and its LayerNorm's output."""
    norm = f"{prefix}.embeddings.LayerNorm"
    return {"sum": Row(Tap(norm, "input")), "out": Row(Tap(norm, "output"))}


def head(dense: str, classifier: str) -> Mapping[str, Row]:
    """A dense layer on the first token, its activation, and the classifier."""
    return {
        "in": Row(operand=Tap(dense, "input")),
        "mid": both(classifier, "input"),
        "out": Row(Tap(classifier, "output")),
    }


FAMILY = Family(
    layers="bert.encoder.layer",
    embed=embeddings("bert"),
    layer=LAYER,
    head=head("bert.pooler.dense", "classifier"),
    feed_forward=FEED_FORWARD,
)
