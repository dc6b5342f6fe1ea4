"""Which site table a model has: its architecture's own, or the one that a traced pass finds."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import quantlab.network.families
from quantlab.config.checks import nearest
from quantlab.network.conversion import conv1d_to_linear
from quantlab.network.family import Family, FeedForward
from quantlab.network.sites import Site
from quantlab.network.unlisted import traced_family
from quantlab.tasks.heads import CLASSES, auto_class, has_head

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FOREIGN = "quantlab_families"  # a namespace package: each folder of this name on PYTHONPATH adds tables


def family_of(model: PreTrainedModel) -> Family:
    """The table of a model's architecture: its module's ``FAMILY``, or ``family(config)`` where settings of
    the config decide. Without a module, it is what a traced pass finds.

    Raises ValueError, with the reason, if it finds no layers or the pass fails.
    """
    name = _table_module(model.config)
    if name is None:
        try:
            return traced_family(model)
        except ValueError as error:
            raise ValueError(
                f"{_no_table(model.config)}. quantlab finds no sites by itself: {error}"
            ) from error
    module = importlib.import_module(name)
    family = module.family(model.config) if hasattr(module, "family") else module.FAMILY
    assert isinstance(family, Family)
    return family


def foreign_table(config: PretrainedConfig) -> Path | None:
    """The file of an architecture's table that is not quantlab's own; None for its own, or without one."""
    name = _table_module(config)
    if name is None or not name.startswith(f"{FOREIGN}."):
        return None
    return Path(str(importlib.import_module(name).__file__))


def site_tags(model: PreTrainedModel) -> dict[str, str]:
    """The tag ``sites`` of a model without a table: which roles its traced pass finds, and which it lacks."""
    if _table_module(model.config) is not None:
        return {}
    family = family_of(model)
    roles = dict.fromkeys(
        name.partition(".")[2] for name in (site.name for site in family.sites(model)) if name[0].isdigit()
    )
    return {"sites": f"traced: {', '.join(roles)}; none of {', '.join(family.unreachable)}"}


def _table_module(config: PretrainedConfig) -> str | None:
    """The module ``<model type>`` of ``quantlab.network.families``, or of ``quantlab_families`` in any folder
    on PYTHONPATH; None if neither has it."""
    own, foreign = _tables()
    name = config.model_type.replace("-", "_")
    if name in own:
        return f"quantlab.network.families.{name}"
    return f"{FOREIGN}.{name}" if name in foreign else None


def _tables() -> tuple[list[str], list[str]]:
    """The model types of quantlab's own tables, and of those on PYTHONPATH."""
    spec = importlib.util.find_spec(FOREIGN)
    folders = [] if spec is None else spec.submodule_search_locations
    own, foreign = (pkgutil.iter_modules(paths) for paths in (quantlab.network.families.__path__, folders))
    return [module.name for module in own], [module.name for module in foreign]


def _no_table(config: PretrainedConfig) -> str:
    own, foreign = _tables()
    known, name = sorted([*own, *foreign]), config.model_type.replace("-", "_")
    return (
        f"quantlab has no site table for the architecture {config.model_type!r}{nearest(name, known)}; "
        f"it has {', '.join(known)}. A new one is a file {FOREIGN}/{name}.py in a folder on PYTHONPATH "
        f"(docs/extending.md)"
    )


def feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """The feed-forward block of every layer; empty if the family's table does not name it."""
    family = family_of(model)
    if family.feed_forward is None:
        return []
    names = (name for name, _ in model.get_submodule(family.layers).named_children())
    return [
        FeedForward(*(f"{family.layers}.{name}.{module}" for module in astuple(family.feed_forward)))
        for name in names
    ]


def all_sites(model: PreTrainedModel) -> list[Site]:
    """Every site of a model, in the network's order. The model may be on the meta device."""
    return family_of(model).sites(model)


def skeleton_of(config: PretrainedConfig, head: str = CLASSES) -> PreTrainedModel:
    """The network that a config describes, on the meta device: modules and shapes, no weights.

    Raises ValueError if quantlab has no site table for its architecture and finds no sites by itself.
    """
    from transformers import PreTrainedModel

    if not has_head(config, head):
        raise ValueError(f"{_no_table(config)}, and transformers has none that answers {head}")
    with torch.device("meta"):
        model = auto_class(head).from_config(config)
    assert isinstance(model, PreTrainedModel)
    model = conv1d_to_linear(model)
    family_of(model)
    return model
