"""CamemBERT: RoBERTa's modules, trained on French."""

from quantlab.network.families.roberta import FAMILY

__all__ = ["FAMILY"]
