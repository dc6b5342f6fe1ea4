"""The plan that a checkpoint was trained through, stored beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantlab.network.checkpoint_files import LEARNED
from quantlab.network.sites import Site
from quantlab.plan.plan import JSON, QuantPlan, read_plan
from quantlab.trial.result import plain_data
from quantlab.trial.slots import PlanSettings

SETTINGS = "settings.json"


def save_learned_plan(folder: Path, plan: QuantPlan, settings: PlanSettings, sites: Sequence[Site]) -> None:
    """Writes the plan, and the settings and sites that it is for, under a checkpoint's folder."""
    inside = folder / LEARNED
    inside.mkdir()
    plan.save(inside)
    (inside / SETTINGS).write_text(json.dumps(_asked(settings, sites), indent=2), encoding="utf-8")


def learned_plan(folder: Path, settings: PlanSettings, sites: Sequence[Site]) -> QuantPlan | None:
    """The plan that a checkpoint was trained through, if it was for the same settings and sites.

    Raises ValueError or OSError where its files are broken.
    """
    file = folder / LEARNED / SETTINGS
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != _asked(settings, sites):
        return None
    return read_plan(folder / LEARNED / JSON)


def learned_plan_tags(folder: Path, settings: PlanSettings, sites: Sequence[Site]) -> dict[str, str]:
    """The tag ``learned_plan`` of a checkpoint that has one: whether a trial with these settings runs it."""
    if not (folder / LEARNED).is_dir():
        return {}
    used = learned_plan(folder, settings, sites) is not None
    return {"learned_plan": "used" if used else "left out: it is for other settings or sites"}


def _asked(settings: PlanSettings, sites: Sequence[Site]) -> Any:
    slots = ("method", "bits", "calibration", "transform", "split", "rounding")
    asked = {name: plain_data(getattr(settings, name)) for name in slots}
    return json.loads(json.dumps({**asked, "sites": sorted(site.name for site in sites)}))
