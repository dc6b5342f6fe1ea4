"""Heads: what a task needs a checkpoint to answer, and which of transformers' auto classes builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CLASSES = "classes of texts"  # one row of logits a text, or a single score
TOKENS = "next tokens"  # one row of logits a token, over the vocabulary
IMAGES = "classes of images"

AUTO_CLASSES = {
    CLASSES: "AutoModelForSequenceClassification",
    TOKENS: "AutoModelForCausalLM",
    IMAGES: "AutoModelForImageClassification",
}


def auto_class(head: str) -> Any:
    """The class of transformers that loads a checkpoint with this head."""
    import transformers

    return getattr(transformers, AUTO_CLASSES[head])


def has_head(config: PretrainedConfig, head: str) -> bool:
    """Whether transformers has a network with this head for a config's architecture."""
    return type(config) in auto_class(head)._model_mapping


def head_of(model: PreTrainedModel) -> str:
    """The head of a loaded model. Raises ValueError if it is none of these."""
    for head in AUTO_CLASSES:
        mapping = auto_class(head)._model_mapping
        if type(model.config) in mapping and isinstance(model, mapping[type(model.config)]):
            return head
    raise ValueError(f"{type(model).__name__} answers none of: {', '.join(AUTO_CLASSES)}")
