"""Where the attention of every layer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlab.network.architecture import all_sites, family_of
from quantlab.network.taps import DroppedProbs, ModuleInput, Probs, Tap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBS, CONTEXT = "attn.probs", "attn.context"  # the roles that lead to attention and to what reads it


@dataclass(frozen=True)
class AttentionLayer:
    """Where a layer's attention is: the module that gets the layer's input, the one whose attention is a
    registered function (or None), and the output projection."""

    number: str
    attention: str
    function: str | None
    out: str


def attention_layers(model: PreTrainedModel) -> list[AttentionLayer]:
    """Every layer's attention. Raises ValueError if the site table does not lead to it."""
    taps: dict[str, Tap] = {site.name: site.tap for site in all_sites(model)}
    numbers = dict.fromkeys(name.partition(".")[0] for name in taps if name[0].isdigit())
    return [
        _layer(number, *(_tap(model, taps, number, role) for role in (PROBS, CONTEXT))) for number in numbers
    ]


def _layer(number: str, probs: Tap, context: Tap) -> AttentionLayer:
    assert isinstance(probs, Probs) and isinstance(context, ModuleInput)
    if isinstance(probs, DroppedProbs):  # of a dropout module inside attention
        return AttentionLayer(number, probs.module.rpartition(".")[0], None, context.module)
    return AttentionLayer(number, probs.module, probs.module, context.module)


def _tap(model: PreTrainedModel, taps: Mapping[str, Tap], number: str, role: str) -> Tap:
    if (tap := taps.get(f"{number}.{role}")) is None:
        reason = family_of(model).unreachable.get(role, f"in layer {number}")
        raise ValueError(
            f"the attention of {type(model).__name__} cannot be changed: no tap reaches {role}, {reason}"
        )
    return tap
