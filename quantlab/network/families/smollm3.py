"""SmolLM3: Llama's modules, some layers without rotary embedding."""

from quantlab.network.families.llama import FAMILY

__all__ = ["FAMILY"]
