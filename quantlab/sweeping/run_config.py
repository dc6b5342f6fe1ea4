"""A run of the command line: a trial, where it is recorded, and the sweep that it belongs to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig

from quantlab.sweeping.sweep import Sweep
from quantlab.tracking.tracker import Tracker
from quantlab.trial.config import TrialConfig, plain_config

NAMING = ("method", "bits", "placement", "calibration")  # these name a trial
SLOTS = {
    "transform": "none",
    "split": "none",
    "rounding": "nearest",
}  # and these, if another choice
NAMED_SLOTS = {"training": "none", **SLOTS}


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrialConfig):
    """What ``conf/config.yaml`` builds."""

    tracking: Tracker
    sweep: Sweep

    def params(self) -> dict[str, Any]:
        """The trial's settings as flat names and texts, as one types them: ``method: peg``, ``method.k: 4``.

        A group's own name has the choice that Hydra composed (``peg``); outside Hydra, the class (``Peg``).
        """
        settings = plain_config(self)
        return flat_settings(settings) | {
            group: choice for group, choice in chosen_groups().items() if group in settings
        }


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as flat names and texts; a component's own name has its class."""
    return {name: _typed(value) for name, value in _flat(settings, "")}


def chosen_groups() -> dict[str, str]:
    """What Hydra composed of each config group of the trial in hand: ``{"method": "peg", ...}``."""
    if not HydraConfig.initialized():
        return {}
    return {group: str(choice) for group, choice in HydraConfig.get().runtime.choices.items() if choice}


def trial_run_name(choices: Mapping[str, str | None], overrides: Iterable[str]) -> str:
    """``peg w8a8 all minmax k=4``: the choices of the groups that decide a trial, and what was overridden in
    them."""
    changed = [
        item.split(".", 1)
        for item in overrides
        if item.split(".", 1)[0] in (*NAMING, *NAMED_SLOTS) and "." in item.split("=")[0]
    ]
    chosen = {group: str(choices.get(group, plain)) for group, plain in NAMED_SLOTS.items()}
    slots = [choice for group, choice in chosen.items() if choice != NAMED_SLOTS[group]]
    return " ".join(
        [*(str(choices[group]) for group in NAMING), *slots, *(setting for _, setting in changed)]
    )


def _typed(value: Any) -> str:
    """A value as the command line and YAML have it: ``true``, ``null``."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _flat(value, f"{prefix}{name}.")
        elif name == "_target_":
            leaves.append((prefix.removesuffix("."), value.rsplit(".", 1)[1]))
        else:
            leaves.append((prefix + name, value))
    return leaves
