"""Tiny models of several families with batches for them, and how far a file's answers are from others."""

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    Dinov2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    ViTConfig,
)

from quantlab.network.conversion import conv1d_to_linear
from quantlab.tasks.batching import Batch

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
LLAMA = LlamaConfig(
    **SIZES,
    intermediate_size=48,
    num_key_value_heads=2,
    vocab_size=50,
    max_position_embeddings=32,
    tie_word_embeddings=True,
)
GPT2 = GPT2Config(
    vocab_size=50,
    n_embd=32,
    n_layer=1,
    n_head=4,
    n_positions=32,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
MODELS = {
    "bert": (
        AutoModelForSequenceClassification,
        BertConfig(**SIZES, intermediate_size=64, vocab_size=50, max_position_embeddings=32, pad_token_id=0),
    ),
    "llama": (AutoModelForCausalLM, LLAMA),
    "gpt2 with classes": (AutoModelForSequenceClassification, GPT2),
    "vit": (
        AutoModelForImageClassification,
        ViTConfig(**SIZES, intermediate_size=64, image_size=16, patch_size=4),
    ),
    "dinov2": (
        AutoModelForImageClassification,
        Dinov2Config(**SIZES, mlp_ratio=2, image_size=16, patch_size=4),
    ),
}


def made(family: str) -> PreTrainedModel:
    """All parameters are random, and large enough for answers to differ."""
    auto, config = MODELS[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(deepcopy(config), attn_implementation="eager")
        for value in model.parameters():
            noise = torch.randn_like(value)
            value.data = noise * value.shape[-1] ** -0.5 if value.ndim > 1 else value.data + 0.1 * noise
    conv1d_to_linear(model)
    return model.requires_grad_(False).eval()


def batch_for(model: PreTrainedModel) -> Batch:
    """Eight rows: images, or texts padded on the right."""
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Tensor]
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.randn(8, 3, 16, 16, generator=generator)}
    else:
        mask = (torch.arange(9) < torch.tensor([9, 4, 7, 9, 6, 2, 8, 9])[:, None]).long()
        inputs = {
            "input_ids": torch.randint(3, 50, (8, 9), generator=generator) * mask,
            "attention_mask": mask,
        }
    return Batch(inputs=inputs, indices=np.arange(8))


def valid(logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """A decoder's answers at tokens that are no padding; other answers as they are."""
    return logits[inputs["attention_mask"].bool()] if logits.ndim == 3 else logits


def errors(answers: Tensor, simulated: Tensor, batch: Batch) -> Tensor:
    """Distances as shares of the largest answer, without padding."""
    assert answers.shape == simulated.shape
    return (valid(answers, batch.inputs) - valid(simulated, batch.inputs)).abs() / simulated.abs().max()
