"""ELECTRA: BERT's layers; small ones project their narrower embeddings to the hidden size."""

from quantlab.network.architecture import Family, Taps
from quantlab.network.families.bert import FEED_FORWARD, LAYER, embeddings, head
from quantlab.network.taps import ModuleInput, ModuleOutput

FAMILY = Family(
    layers="electra.encoder.layer",
    embed={
        **embeddings("electra"),
        "project.in": Taps(read_at=ModuleInput("electra.embeddings_project"), optional=True),
        "project.out": Taps(made_at=ModuleOutput("electra.embeddings_project"), optional=True),
    },
    layer=LAYER,
    head=head("classifier.dense", "classifier.out_proj"),
    feed_forward=FEED_FORWARD,
)
