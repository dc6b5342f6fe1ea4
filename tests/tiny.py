"""Tiny models in memory and padded batches for them. Their weights are large enough for answers to differ."""

from collections.abc import Mapping, Sequence
from itertools import chain
from types import SimpleNamespace

import numpy as np
import torch
from conftest import SPECIAL, WORDS, family_config
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from quantlab.calibration.estimators import Calibration, MinMax
from quantlab.calibration.probe import observe
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, plan_weights
from quantlab.network.architecture import all_sites
from quantlab.network.attention import TAPS
from quantlab.network.sites import Placement, Site
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import WeightQuant
from quantlab.quant.sketch import Sketch
from quantlab.rounding.rounding import Rounding
from quantlab.splits.split import SplitMethod
from quantlab.tasks.batching import Batch, Tokenized
from quantlab.transforms.transform import Transform

ALL, GEMM = Placement(at="tensor"), Placement(at="operand")
FAMILIES = ("bert", "roberta", "distilbert", "electra", "electra without projection")
LENGTHS = (9, 4, 1, 9, 6, 2)  # of rows that are padded together


def tiny_config(family: str = "bert", layers: int = 2) -> PretrainedConfig:
    """The config of a small classifier of one of :data:`FAMILIES`."""
    config = family_config(family.split()[0], layers)
    if family == "electra without projection":
        config.embedding_size = config.hidden_size
    return config


def tiny_model(family: str = "bert", layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """A small classifier in evaluation mode. All parameters are random, LayerNorms' and biases too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(
            tiny_config(family, layers), attn_implementation="eager"
        )
        for value in model.parameters():
            noise = torch.randn_like(value)
            value.data = noise * value.shape[-1] ** -0.5 if value.ndim > 1 else value.data + 0.2 * noise
    return model.requires_grad_(False).eval()


def tokenized(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> Tokenized:
    """Random tokenized rows of these lengths, without padding."""
    random = np.random.default_rng(seed)
    ids = [random.integers(len(SPECIAL), len(SPECIAL) + len(WORDS), length).tolist() for length in lengths]
    rows = tuple({"input_ids": row, "attention_mask": [1] * len(row)} for row in ids)
    return Tokenized(rows=rows, labels=random.integers(0, 2, len(rows)), max_length=16)


def padded(lengths: Sequence[int] = LENGTHS, seed: int = 0, length: int | None = None) -> Batch:
    """One batch of random rows of these lengths, padded to ``length`` or to the longest row."""
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
    return placement.select(all_sites(model))


def settings_of(**settings: object) -> SimpleNamespace:
    """Settings that decide a plan, in a plain basis and with plain rounding unless they say otherwise."""
    return SimpleNamespace(
        **{"transform": Transform(), "split": SplitMethod(), "rounding": Rounding(), **settings}
    )


def plan_of(
    method: Method,
    sites: Sequence[Site],
    sketches: Mapping[str, Sketch],
    weights: tuple[WeightQuant, ...],
    bits: Bits,
    calibration: Calibration,
) -> QuantPlan:
    """The plan of a method's activations and these weights."""
    return QuantPlan(activations=method.activations(sites, sketches, bits, calibration), weights=weights)


def planned(model: PreTrainedModel, placement: Placement, method: Method, **bits: object) -> QuantPlan:
    """A plan with the min-max ranges of :func:`padded`."""
    sites, calibration, chosen = sites_of(model, placement), MinMax(), Bits(**bits)  # type: ignore[arg-type]
    sketches = observe(model, sites, [padded()])
    return plan_of(
        method, sites, sketches, plan_weights(model, method, chosen, calibration), chosen, calibration
    )


def state(model: PreTrainedModel) -> dict[str, object]:
    """Everything of a model that an insertion touches: storage, bits, hooks, attributes, attention."""
    named = list(chain(model.named_parameters(), model.named_buffers()))
    return {
        "storage": {name: (id(value), value.data_ptr()) for name, value in named},
        "bits": {name: value.numpy().tobytes() for name, value in named},
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "taps": [hasattr(module, TAPS) for module in model.modules()],
        "attention": model.config._attn_implementation,
    }


def tied_decoder(layers: int = 1, words: int = 12) -> LlamaForCausalLM:
    """A tiny random Llama whose head is its embedding."""
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)
