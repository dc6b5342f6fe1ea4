"""How a model family's table of places is written, and how it unfolds over a model of any depth."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

import quantlab.network.families
from quantlab.config.checks import nearest
from quantlab.network.sites import Place, Tap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Row:
    """Taps of one role, module names relative to the layer (or to the model). ``optional``: where the module
    exists."""

    tensor: Tap | None = None
    operand: Tap | None = None
    optional: bool = False


def both(module: str, at: str) -> Row:
    """A tensor that has one consumer, a matrix product: both taps are the same."""
    return Row(tensor=Tap(module, at), operand=Tap(module, at))


@dataclass(frozen=True)
class FeedForward:
    """The modules of a feed-forward block: a Linear, an activation that alone reads it, and a Linear that
    alone reads the activation."""

    first: str
    activation: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """The table of one model family: its layers' module path and the rows before, in and after each layer."""

    layers: str
    embed: Mapping[str, Row]
    layer: Mapping[str, Row]
    head: Mapping[str, Row]
    feed_forward: FeedForward | None = None  # where an engine may compute it in one go

    def places(self, model: PreTrainedModel) -> list[Place]:
        """Every place of the model, in the network's order. Raises ValueError where two places share a
        tap."""
        modules = dict(model.named_modules())
        depth = sum(1 for _ in modules[self.layers].children())
        tables = [("", "embed", self.embed)]
        tables += [(f"{self.layers}.{index}.", str(index), self.layer) for index in range(depth)]
        tables += [("", "head", self.head)]
        found = [
            place
            for prefix, scope, table in tables
            for role, row in table.items()
            if (place := _place(f"{scope}.{role}", row, prefix, modules, model.config)) is not None
        ]
        for taps in (
            [(place.tensor, place.name) for place in found],
            [(place.operand, place.name) for place in found],
        ):
            _check_distinct(taps)
        return found


def family_of(config: PretrainedConfig) -> Family:
    """The table in ``quantlab/network/families/<model type>.py``. Raises ValueError where there is none."""
    known = sorted(module.name for module in pkgutil.iter_modules(quantlab.network.families.__path__))
    name = config.model_type.replace("-", "_")
    if name not in known:
        raise ValueError(
            f"quantlab has no site table for the architecture {config.model_type!r}{nearest(name, known)}; "
            f"it has {', '.join(known)}. A new one is one file in quantlab/network/families"
        )
    family = importlib.import_module(f"quantlab.network.families.{name}").FAMILY
    assert isinstance(family, Family)
    return family


def feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """The feed-forward block of every layer, where the family's table names it."""
    family = family_of(model.config)
    if family.feed_forward is None:
        return []
    names = (name for name, _ in model.get_submodule(family.layers).named_children())
    return [
        FeedForward(*(f"{family.layers}.{name}.{module}" for module in astuple(family.feed_forward)))
        for name in names
    ]


def places(model: PreTrainedModel) -> list[Place]:
    """Every named place of a model. It may be on the meta device: no weight is read."""
    return family_of(model.config).places(model)


def skeleton_of(config: PretrainedConfig) -> PreTrainedModel:
    """The sequence classifier that a config describes, on the meta device: modules and shapes, no weights.

    Raises ValueError where quantlab has no site table for its architecture.
    """
    from transformers import AutoModelForSequenceClassification, PreTrainedModel

    family_of(config)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    assert isinstance(model, PreTrainedModel)
    return model


def _check_distinct(taps: Iterable[tuple[Tap | None, str]]) -> None:
    names: dict[Tap, str] = {}
    for tap, name in taps:
        if tap is not None and names.setdefault(tap, name) != name:
            raise ValueError(
                f"the site table names the {tap.at} of {tap.module} twice, as {names[tap]} and as {name}: "
                "one of them would not be quantized"
            )


def _place(
    name: str, row: Row, prefix: str, modules: Mapping[str, nn.Module], config: PretrainedConfig
) -> Place | None:
    tensor, operand = (_absolute(tap, prefix, modules, row.optional) for tap in (row.tensor, row.operand))
    known = tensor or operand
    if known is None:
        return None
    return Place(name=name, channels=_channels(known, modules, config), tensor=tensor, operand=operand)


def _absolute(tap: Tap | None, prefix: str, modules: Mapping[str, nn.Module], optional: bool) -> Tap | None:
    if tap is None:
        return None
    path = prefix + tap.module
    if path not in modules:
        if optional:
            return None
        raise ValueError(
            f"the site table names a module {path!r} that this model lacks{nearest(path, modules)}"
        )
    return Tap(path, tap.at)


def _channels(tap: Tap, modules: Mapping[str, nn.Module], config: PretrainedConfig) -> int:
    module = modules[tap.module]
    if tap.at in ("scores", "probs"):
        return int(config.num_attention_heads)
    if isinstance(module, nn.Linear):
        return module.in_features if tap.at == "input" else module.out_features
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    return int(config.hidden_size)
