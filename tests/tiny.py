"""Tiny models in memory, with weights wide enough for their answers to differ, and padded batches for them."""

from collections.abc import Sequence

import numpy as np
import torch
from conftest import SPECIAL, WORDS, family_config
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from quantlab.batching import Batch, Tokenized
from quantlab.placement.architecture import places
from quantlab.placement.sites import Placement, Site

ALL, GEMM = Placement(at="tensor"), Placement(at="operand")
FAMILIES = ("bert", "roberta", "distilbert", "electra", "electra without projection")
LENGTHS = (9, 4, 1, 9, 6, 2)  # of rows that are padded together


def tiny_config(family: str = "bert", layers: int = 2) -> PretrainedConfig:
    """The config of a small classifier of any of :data:`FAMILIES`."""
    config = family_config(family.split()[0], layers)
    if family == "electra without projection":
        config.embedding_size = config.hidden_size
    return config


def tiny_model(family: str = "bert", layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """A small classifier, ready to answer; every parameter is random, LayerNorms and biases too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(tiny_config(family, layers), attn_implementation="eager")
        for value in model.parameters():
            noise = torch.randn_like(value)
            value.data = noise * value.shape[-1] ** -0.5 if value.ndim > 1 else value.data + 0.2 * noise
    return model.requires_grad_(False).eval()


def tokenized(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> Tokenized:
    """Random rows of these lengths, without padding."""
    random = np.random.default_rng(seed)
    ids = [random.integers(len(SPECIAL), len(SPECIAL) + len(WORDS), length).tolist() for length in lengths]
    rows = tuple({"input_ids": row, "attention_mask": [1] * len(row)} for row in ids)
    return Tokenized(rows=rows, labels=random.integers(0, 2, len(rows)), max_length=16)


def padded(lengths: Sequence[int] = LENGTHS, seed: int = 0, length: int | None = None) -> Batch:
    """Random rows of these lengths in one batch, padded to ``length`` or to the longest."""
    rows, width = tokenized(lengths, seed).rows, length or max(lengths)
    inputs = {
        name: torch.tensor([row[name] + [0] * (width - len(row[name])) for row in rows])
        for name in ("input_ids", "attention_mask")
    }
    return Batch(inputs=inputs, indices=np.arange(len(rows)))


def logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's answers as it is now."""
    with torch.inference_mode():
        return model(**batch.inputs).logits.clone()


def sites_of(model: PreTrainedModel, placement: Placement = ALL) -> list[Site]:
    """The sites that a placement finds."""
    return placement.select(places(model))
