"""ELECTRA: BERT's layers; small ones project their narrower embeddings to the hidden size."""

from quantlab.network.architecture import Family, Taps
from quantlab.network.families.bert import FEED_FORWARD, LAYER, embeddings, head
from quantlab.network.sites import Tap

FAMILY = Family(
    layers="electra.encoder.layer",
    embed={
        **embeddings("electra"),
        "project.in": Taps(read_at=Tap("electra.embeddings_project", "input"), optional=True),
        "project.out": Taps(made_at=Tap("electra.embeddings_project", "output"), optional=True),
    },
    layer=LAYER,
    head=head("classifier.dense", "classifier.out_proj"),
    feed_forward=FEED_FORWARD,
)
