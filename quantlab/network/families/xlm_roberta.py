"""XLM-RoBERTa: RoBERTa's modules, with a vocabulary of a hundred languages."""

from quantlab.network.families.roberta import FAMILY

__all__ = ["FAMILY"]
