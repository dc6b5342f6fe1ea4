"""Mistral: Llama's modules with a sliding window, which the mask bears."""

from quantlab.network.families.llama import FAMILY

__all__ = ["FAMILY"]
