"""OPT: pre-norm decoders; OPT-350m is post-norm, with narrower embeddings that it projects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlab.network.builders import post_norm, pre_norm
from quantlab.network.family import Family, Taps
from quantlab.network.taps import ModuleInput, ModuleOutput

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BASE = "model.decoder"
PROJECTED = {
    "project.in": Taps(read_at=ModuleInput(f"{BASE}.project_in"), optional=True),
    "project.out": Taps(made_at=ModuleOutput(f"{BASE}.project_in"), optional=True),
    "unproject.in": Taps(read_at=ModuleInput(f"{BASE}.project_out"), optional=True),
}


def family(config: PretrainedConfig) -> Family:
    """The table; ``do_layer_norm_before`` decides where the norms stand."""
    norms, heads = ("self_attn_layer_norm", "final_layer_norm"), ("lm_head", "score")
    if config.do_layer_norm_before:
        return pre_norm(
            layers=f"{BASE}.layers",
            attention="self_attn",
            norms=norms,
            out="self_attn.out_proj",
            up="fc1",
            activation="activation_fn",
            down="fc2",
            embed=PROJECTED,
            final=None if config._remove_final_layer_norm or _narrow(config) else f"{BASE}.final_layer_norm",
            heads=heads,
        )
    return post_norm(
        layers=f"{BASE}.layers",
        attention="self_attn",
        norms=norms,
        out="self_attn.out_proj",
        up="fc1",
        activation="activation_fn",
        down="fc2",
        embed=PROJECTED,
        heads=heads,
        causal=True,
    )


def _narrow(config: PretrainedConfig) -> bool:
    return bool(config.word_embed_proj_dim != config.hidden_size)
