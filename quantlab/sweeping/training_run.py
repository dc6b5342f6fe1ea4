"""A training as a tracker records it: its curves once, linked from every trial of its checkpoint."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from quantlab.network.architecture import all_sites
from quantlab.network.models import FineTuned, ModelSpec
from quantlab.storage.memo import Memo
from quantlab.sweeping.run_config import flat_settings
from quantlab.tasks.task import Task
from quantlab.tracking.tracker import RunEntry, RunOutcome, Tracker
from quantlab.training.finetuning import FineTuning
from quantlab.training.training import Training
from quantlab.trial.config import TrialConfig
from quantlab.trial.material import load_splits, resolve_checkpoint
from quantlab.trial.slots import Slots
from quantlab.trial.trained import CARD, HISTORY, Trained, trained

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Slots):
    """What ``conf/finetune.yaml`` builds: a model, a task, and a training that may follow.

    The slots are the quantization that a training may train through.
    """

    model: ModelSpec
    task: Task
    training: Training
    tracking: Tracker

    def run(self, console: Console) -> Path:
        """Fine-tunes the model unless it is there or a checkpoint, then trains it; returns the folder."""
        if isinstance(self.model, FineTuned) or not self.training.trains:
            folder = FineTuning(model=self.model, task=self.task).run(console)
        if self.training.trains:
            memo = Memo()
            model = trained(self.model, self.training, self)
            skeleton = resolve_checkpoint(self.model, self.task, memo).skeleton
            self.training.check(skeleton, all_sites(skeleton))
            self.training.check_slots(self.calibration, self.split, self.rounding)
            folder = model.folder(self.task, lambda: load_splits(self.task, memo))
            record_training(self.tracking, folder)
            console.print(f"stored in {folder}")
        return folder


def training_tags(config: TrialConfig, tracking: Tracker, memo: Memo) -> dict[str, str]:
    """Records the training of a trial's checkpoint; returns the tags of the trial that lead to it.

    ``training_key`` is the folder's name, which the training's run has as well; ``training_run`` the id of
    that run, if there is one. Empty where the trial trains nothing.
    """
    if not isinstance(config.trained, Trained):
        return {}
    folder = resolve_checkpoint(config.trained, config.task, memo).folder
    run_id = record_training(tracking, folder)
    return {"training_key": folder.name} | ({"training_run": run_id} if run_id else {})


def record_training(tracking: Tracker, folder: Path) -> str | None:
    """Records a finished training, unless the store has it; returns the run's id, if there is one.

    A step's loss, penalty and learning rate are curves. A store that takes nothing is a line of the log.
    """
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    history = pd.read_csv(folder / HISTORY, index_col="step")
    entry = RunEntry(
        identity=f"training/{folder.name}",
        name=f"training {folder.name}",
        params={
            "task": card["task"],
            "start": card["start"]["title"],
            **flat_settings({"training": card["training"]}),
        },
        tags={"training_key": folder.name},
    )
    curves = {f"train_{name}": column.tolist() for name, column in history.items()}
    outcome = RunOutcome(metrics={"train_s": card["train_s"], **curves}, tags={}, files=(CARD, HISTORY))
    if problem := tracking.replay(entry, folder, outcome):
        log.warning("the training is in %s, but was not recorded: %s", folder, problem)
    return tracking.run_id(entry, folder)
