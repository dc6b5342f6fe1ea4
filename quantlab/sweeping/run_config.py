"""A run of the command line: a trial, where it is recorded, and the sweep that it belongs to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantlab.sweeping.sweep import Sweep
from quantlab.tracking.tracker import Tracker
from quantlab.trial.config import TrialConfig, plain_config

NAMING = ("method", "bits", "placement", "calibration")


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrialConfig):
    """What ``conf/config.yaml`` builds."""

    tracking: Tracker
    sweep: Sweep

    def params(self) -> dict[str, Any]:
        """The trial's settings as flat names and values: ``bits.weights: 8``."""
        return dict(_flat(plain_config(self), ""))


def trial_run_name(choices: Mapping[str, str | None], overrides: Iterable[str]) -> str:
    """``peg w8a8 all minmax k=4``: the choices of the groups that decide a trial, and what was overridden in
    them."""
    changed = [
        item.split(".", 1)
        for item in overrides
        if item.split(".", 1)[0] in NAMING and "." in item.split("=")[0]
    ]
    return " ".join([*(str(choices[group]) for group in NAMING), *(setting for _, setting in changed)])


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
