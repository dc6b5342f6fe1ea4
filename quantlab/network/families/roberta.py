"""RoBERTa: BERT's layers, the dense layer inside the classifier."""

from quantlab.network.architecture import Family
from quantlab.network.families.bert import FEED_FORWARD, LAYER, embeddings, head

FAMILY = Family(
    layers="roberta.encoder.layer",
    embed=embeddings("roberta"),
    layer=LAYER,
    head=head("classifier.dense", "classifier.out_proj"),
    feed_forward=FEED_FORWARD,
)
