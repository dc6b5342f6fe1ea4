"""Qwen3: Llama's modules with norms of queries and keys."""

from quantlab.network.families.llama import FAMILY

__all__ = ["FAMILY"]
