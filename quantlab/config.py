"""A run of the command line: a trial, and where it is recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from quantlab.result import describe
from quantlab.tracking.base import Tracker
from quantlab.trial import TrialConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrialConfig):
    """What ``conf/config.yaml`` builds."""

    tracking: Tracker

    def params(self) -> dict[str, Any]:
        """The trial's settings as flat names and values: ``bits.weights: 8``."""
        tree = {field.name: describe(getattr(self, field.name)) for field in fields(TrialConfig)}
        return dict(_flat(tree, ""))


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
