"""DINOv2: a ViT with LayerScale after each sublayer; its head reads the class token and the mean patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlab.network.builders import vision
from quantlab.network.family import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def family(config: PretrainedConfig) -> Family:
    """The table; ``use_swiglu_ffn`` decides whether the feed-forward is gated."""
    norms = ("norm1", "norm2")
    return vision("dinov2", "encoder.layer", norms, scaled=True, gated=bool(config.use_swiglu_ffn))
