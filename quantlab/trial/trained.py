"""A model that a training makes of another one: once, stored in the cache folder, found by its content."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock

from quantlab.evaluation.answering import Evaluation
from quantlab.network import checkpoint
from quantlab.network.architecture import all_sites, family_of
from quantlab.network.models import ModelSpec, ResolvedCheckpoint
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.storage.files import cache_dir, digest, whole_folder
from quantlab.storage.memo import Memo
from quantlab.tasks.task import Splits, Task
from quantlab.training.losses import loss_for
from quantlab.training.recipe import train
from quantlab.training.training import Plain, Training
from quantlab.trial.learned_plan import save_learned_plan
from quantlab.trial.material import fp32_sketches, load_material
from quantlab.trial.planning import make_plan
from quantlab.trial.result import plain_data
from quantlab.trial.slots import Slots, SlotSettings

CARD, HISTORY = "training.json", "training.csv"
ONE_ROW = Evaluation(limit=1, order="file", holdout=0.0)

log = logging.getLogger(__name__)


def trained(start: ModelSpec, training: Training, settings: SlotSettings) -> ModelSpec:
    """What a training makes of a model; the model itself where it trains nothing."""
    if not isinstance(training, Plain):
        return start
    slots = {each.name: getattr(settings, each.name) for each in fields(Slots)}
    return Trained(
        device=start.device,
        start=start,
        training=training,
        slots=Slots(**slots) if training.simulates else None,
    )


@dataclass(frozen=True, kw_only=True)
class Trained(ModelSpec):
    """What ``training`` makes of the model ``start``, which has the task's head.

    ``slots`` is the quantization that it trains through; None where it simulates none.
    """

    start: ModelSpec
    training: Plain
    slots: Slots | None = None

    def folder(self, task: Task, splits: Callable[[], Splits]) -> Path:
        """Its folder in the cache. Trains where it is not there, which a line of the log says.

        The same settings, data and start have the same folder, and on one machine the same weights. Raises
        FloatingPointError where the loss becomes NaN or infinite, ValueError where a classifier learnt to
        give one answer.
        """
        start = self.start.resolve(task, splits)
        target = self.target(task, splits(), start)
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.parent / f".{target.name}.lock"):
                if not target.is_dir():  # another process may have trained it meanwhile
                    self._train(task, splits(), start, target)
        return target

    def target(self, task: Task, splits: Splits, start: ResolvedCheckpoint) -> Path:
        """The folder, named by all that decides the weights."""
        settings = (repr(plain_data(self.training)), repr(plain_data(self.slots)), str(task.max_length))
        rows = task.units(splits.train, start.processor).fingerprint
        key = digest([start.fingerprint, rows, str(start.label_columns), *settings])[:16]
        return cache_dir() / "trained" / f"{type(self.training).__name__.lower()}-{task.name}-{key}"

    def title(self, folder: Path) -> str:
        """The start's, and the name of the folder."""
        return f"{self.start.title(folder)}, {folder.name}"

    def _train(self, task: Task, data: Splits, start: ResolvedCheckpoint, target: Path) -> None:
        log.warning("training %s", target.name)
        began, recipe = time.perf_counter(), self.training.recipe
        examples = recipe.examples(task.units(data.train, start.processor))
        rows = examples.encode(start.processor, task.max_length)
        plan, sites = self._plan(task, data)
        state = target.parent / f".{target.name}.state"
        with torch.random.fork_rng([device] if (device := self.torch_device()).type == "cuda" else []):
            torch.manual_seed(recipe.seed)
            model, _ = checkpoint.read_network(start.folder, task.head)
            self.training.start(model)
            model.to(device)  # type: ignore[arg-type]
            with self.training.course(model, all_sites(start.skeleton), plan) as course:
                loss = loss_for(task.head, start.label_columns)
                history = train(model, start.processor, rows, recipe, loss, course, state)
                learned = course.plan() if course.plan else None
        with whole_folder(target) as folder, checkpoint.quiet():
            model.save_pretrained(folder)
            start.processor.save_pretrained(folder)
            if learned is not None and self.slots is not None:
                save_learned_plan(folder, learned, self.slots, sites)
            pd.DataFrame(history).rename_axis("step").to_csv(folder / HISTORY)
            card = {
                "training": plain_data(self.training),
                "task": task.name,
                "rows": len(rows),
                "steps": len(history),
                "train_s": time.perf_counter() - began,
                "start": {"title": self.start.title(start.folder), "fingerprint": start.fingerprint},
            }
            (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        state.unlink(missing_ok=True)

    def _plan(self, task: Task, data: Splits) -> tuple[QuantPlan, list[Site]]:
        """The plan of the slots for the start, and the sites that they select."""
        if self.slots is None:
            return QuantPlan(), []
        memo = Memo()
        memo.get("splits", task, lambda: data)
        material = load_material(self.start, task, ONE_ROW, memo)
        sites = self.slots.placement.select(material.sites, family_of(material.model).unreachable)
        fp32 = fp32_sketches(material, self.slots.calibration)
        return make_plan(self.slots, material, sites, fp32)[0], sites
