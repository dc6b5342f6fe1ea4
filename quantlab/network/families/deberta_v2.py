"""DeBERTa v2 and v3: BERT's layers with an attention of their own, to relative positions as well."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quantlab.network.builders import embeddings, post_norm
from quantlab.network.family import Family, Taps, one_tap
from quantlab.network.taps import DroppedProbs, ModuleInput, ModuleOutput, RelativePositions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SELF = "attention.self"
PROJECT = "deberta.embeddings.embed_proj"
SCORES = "which DeBERTa's own attention makes between two lines of Python"
SHARED = "whose Linear also runs on the relative positions (share_att_key)"
SHARED_POSITIONS = {"positions": "pos_dropout"}
POSITIONS = {"positions.key": "pos_key_proj", "positions.query": "pos_query_proj"}
TWICE = ("query", "key")


def family(config: PretrainedConfig) -> Family:
    """The table; ``share_att_key`` decides whether queries and keys can be told from positions."""
    shared = bool(getattr(config, "relative_attention", False) and getattr(config, "share_att_key", False))
    made = {role: one_tap(ModuleOutput(f"{SELF}.{role}_proj")) for role in ("query", "key", "value")}
    inside = {
        **{
            name: Taps(read_at=RelativePositions(f"{SELF}.{module}"), optional=True)
            for name, module in (SHARED_POSITIONS if shared else POSITIONS).items()
        },
        **{role: taps for role, taps in made.items() if not shared or role not in TWICE},
        "probs": one_tap(DroppedProbs(f"{SELF}.dropout")),
    }
    table = post_norm(
        layers="deberta.encoder.layer",
        attention=SELF,
        out="attention.output.dense",
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        embed={
            "project.in": Taps(read_at=ModuleInput(PROJECT), optional=True),
            **embeddings("deberta.embeddings.LayerNorm"),
        },
        dense="pooler.dense",
        heads=("classifier",),
        scores=False,
        unreachable={
            "attn.scores": SCORES,
            **{f"attn.{role}": SHARED for role in TWICE if shared},
        },
    )
    first = {"attn.in": table.layer["attn.in"]}
    return replace(table, layer={**first, **{f"attn.{role}": t for role, t in inside.items()}, **table.layer})
