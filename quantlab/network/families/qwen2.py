"""Qwen2: Llama's modules with biases of queries, keys and values."""

from quantlab.network.families.llama import FAMILY

__all__ = ["FAMILY"]
