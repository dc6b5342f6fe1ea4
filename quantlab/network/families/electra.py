"""ELECTRA: BERT's layers; small ones project their narrower embeddings to the hidden size."""

from dataclasses import replace

from quantlab.network.families.bert import bert_like
from quantlab.network.family import Taps
from quantlab.network.taps import ModuleInput, ModuleOutput

PROJECT = "electra.embeddings_project"
ELECTRA = bert_like("electra", "classifier.dense", "classifier.out_proj")
FAMILY = replace(
    ELECTRA,
    embed={
        **ELECTRA.embed,
        "project.in": Taps(read_at=ModuleInput(PROJECT), optional=True),
        "project.out": Taps(made_at=ModuleOutput(PROJECT), optional=True),
    },
)
