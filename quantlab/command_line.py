"""Components back into the overrides that build them, for messages that name a command."""

import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from quantlab.conf_dir import CONF


def command(module: str, **components: Any) -> str:
    """``python -m <module> model=minilm task=docmatch``, with every setting in which they differ from their YAML.

    Each component is passed under its config group, and its ``name`` is that of its YAML file.
    """
    choices = [f"{group}={component.name}" for group, component in components.items()]
    settings: list[str] = []
    for group, component in components.items():
        settings += differences(group, component, as_shipped(group, component.name))
    return shlex.join(["python", "-m", module, *choices, *settings])


def as_shipped(group: str, name: str) -> Any:
    """The component as its YAML file builds it, or None where the configs have no such file.

    Read without Hydra's own composition, which cannot be entered again while a command of it runs.
    """
    path = Path(CONF, group, f"{name}.yaml")
    if not path.is_file():
        return None
    tree = DictConfig(OmegaConf.load(path))
    for entry in tree.pop("defaults", []):
        if entry != "_self_":  # {"/recipe@recipe": "quick"}
            ((place, choice),) = entry.items()
            folder, _, key = place.partition("@")
            tree[key] = OmegaConf.load(Path(CONF, folder.strip("/"), f"{choice}.yaml"))
    return instantiate(tree, _convert_="all")


def differences(prefix: str, component: Any, shipped: Any) -> list[str]:
    """The overrides that turn ``shipped`` into ``component``; none where they are of different classes."""
    if type(component) is not type(shipped):
        return []
    found: list[str] = []
    for field in fields(component):
        ours, theirs, name = getattr(component, field.name), getattr(shipped, field.name), f"{prefix}.{field.name}"
        if is_dataclass(ours):
            found += differences(name, ours, theirs)
        elif ours != theirs:
            found.append(f"{name}={written(ours)}")
    return found


def written(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, tuple):
        return f"[{','.join(map(written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
