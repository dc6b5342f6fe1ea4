"""Tiny random networks of every family and head, and batches for them."""

from functools import cache

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.network.conversion import conv1d_to_linear
from quantlab.tasks.heads import CLASSES, IMAGES, TOKENS, auto_class

IDS = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**IDS, **SIZES, "intermediate_size": 48, "max_position_embeddings": 66}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
OPT = {**IDS, **SIZES, "ffn_dim": 48, "max_position_embeddings": 66, "word_embed_proj_dim": 32}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
GPT2 = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 66}
NARROW = {"word_embed_proj_dim": 16, "do_layer_norm_before": False}
LOCAL = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
SPECIAL = {"cls_token_id": 1, "sep_token_id": 2}
DEIT = {"architectures": ["DeiTForImageClassification"]}
RELATIVE = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["c2p", "p2c"]}
DEBERTA = {**TEXT, **RELATIVE, "norm_rel_ebd": "layer_norm", "embedding_size": 16}
LABELS, WORDS, PICTURES = (CLASSES,), (TOKENS, CLASSES), (IMAGES,)
CONFIGS = {
    "bert": (hf.BertConfig, TEXT, LABELS),
    "roberta": (hf.RobertaConfig, TEXT, LABELS),
    "xlm-roberta": (hf.XLMRobertaConfig, TEXT, LABELS),
    "camembert": (hf.CamembertConfig, TEXT, LABELS),
    "deberta-v2": (hf.DebertaV2Config, DEBERTA, LABELS),
    "deberta-v2 shared": (hf.DebertaV2Config, {**DEBERTA, "share_att_key": True}, LABELS),
    "mpnet": (hf.MPNetConfig, TEXT, LABELS),
    "gpt2": (hf.GPT2Config, GPT2, WORDS),
    "opt": (hf.OPTConfig, OPT, WORDS),
    "opt-350m": (hf.OPTConfig, {**OPT, **NARROW}, WORDS),
    "gpt_neox": (hf.GPTNeoXConfig, TEXT, WORDS),
    "gpt_neox in turns": (hf.GPTNeoXConfig, {**TEXT, "use_parallel_residual": False}, WORDS),
    "llama": (hf.LlamaConfig, {**GROUPED, "tie_word_embeddings": True}, WORDS),
    "mistral": (hf.MistralConfig, {**GROUPED, "sliding_window": 3}, WORDS),
    "qwen2": (hf.Qwen2Config, GROUPED, WORDS),
    "qwen3": (hf.Qwen3Config, GROUPED, WORDS),
    "smollm3": (hf.SmolLM3Config, GROUPED, WORDS),
    "gemma3": (hf.Gemma3TextConfig, {**GROUPED, **LOCAL}, WORDS),
    "vit": (hf.ViTConfig, {**IMAGE, "intermediate_size": 48}, PICTURES),
    "deit": (hf.DeiTConfig, {**IMAGE, **DEIT, "intermediate_size": 48}, PICTURES),
    "dinov2": (hf.Dinov2Config, {**IMAGE, "mlp_ratio": 2}, PICTURES),
    "dinov2 gated": (hf.Dinov2Config, {**IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": True}, PICTURES),
}
UNLISTED = {  # these have no table: a traced pass finds their sites
    "phi": (hf.PhiConfig, TEXT, WORDS),
    "stablelm": (hf.StableLmConfig, GROUPED, WORDS),
    "gemma2": (hf.Gemma2Config, {**GROUPED, **LOCAL}, WORDS),
    "olmo2": (hf.Olmo2Config, GROUPED, (TOKENS,)),
    "granite": (hf.GraniteConfig, GROUPED, (TOKENS,)),
    "starcoder2": (hf.Starcoder2Config, GROUPED, WORDS),
    "modernbert": (hf.ModernBertConfig, {**TEXT, **SPECIAL, "local_attention": 4}, LABELS),
}
CONFIGS |= UNLISTED
CASES = [(name, head) for name, (_, _, heads) in CONFIGS.items() for head in heads]


@cache
def model_of(name: str, head: str) -> PreTrainedModel:
    kind, settings, _ = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(head).from_config(kind(**settings), attn_implementation="eager")
        for value in model.parameters():
            value.data = torch.randn_like(value) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3)
    model.config.use_cache = False
    return conv1d_to_linear(model).requires_grad_(False).eval()


def batch_of(head: str, left: bool = False) -> tuple[dict[str, Tensor], Tensor | None]:
    """Two rows, of 6 and of 4 tokens or two images; and the mask. Padding on the left needs positions."""
    random = torch.Generator().manual_seed(0)
    if head == IMAGES:
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=random)}, None
    ids = torch.randint(3, 20, (2, 6), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    ids = ids * mask
    if left:
        ids[1], mask[1] = ids[1].roll(2), mask[1].roll(2)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, mask.bool()
    return {"input_ids": ids, "attention_mask": mask}, mask.bool()


@torch.inference_mode()
def answers(model: PreTrainedModel, head: str) -> Tensor:
    """Logits, of tokens without padding."""
    inputs, mask = batch_of(head)
    if head == TOKENS and mask is not None:
        return model(**inputs).logits[mask].clone()
    return model(**inputs).logits.clone()
