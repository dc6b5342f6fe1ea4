"""What all trials of one model, task and evaluation share: loaded and computed once, not once a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantlab.calibration.estimators import Calibration
from quantlab.calibration.probe import observe
from quantlab.evaluation.answering import Evaluation, Predictions, predict
from quantlab.network.architecture import all_sites
from quantlab.network.models import LoadedModel, ModelSpec, ResolvedCheckpoint
from quantlab.network.sites import Site
from quantlab.quant.sketch import Sketch
from quantlab.storage.files import cache_dir, code_digest, digest, whole_folder
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Batch, Tokenized, by_length, tokenize
from quantlab.tasks.task import Examples, Splits, Task
from quantlab.trial.key import deciding_environment

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """A loaded model with the task's rows, ready to answer and to calibrate."""

    loaded: LoadedModel
    task: Task
    train: Examples
    rows: Tokenized
    batches: list[Batch]
    sites: list[Site]
    data_fingerprint: str  # of the rows that calibrate and the rows that are answered
    key: str  # names checkpoint, data, how they are batched, environment and code

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    def predict(self, title: str) -> Predictions:
        """The model's answers to all evaluation rows, as it is now."""
        return predict(self.model, self.batches, self.loaded.label_columns, title)

    def calibration_batches(self, calibration: Calibration) -> list[Batch]:
        """The rows that calibrate."""
        return calibration.batches(self.train, self.loaded.tokenizer, self.task.max_length)


def load_splits(task: Task, memo: Memo) -> Splits:
    """The task's data, loaded once. Raises ValueError or OSError that says what is wrong with it."""
    return memo.get("splits", task, task.load)


def resolve_checkpoint(model: ModelSpec, task: Task, memo: Memo) -> ResolvedCheckpoint:
    """The model's checkpoint, found once: no step of a trial asks the hub or hashes files again.

    Raises ValueError or OSError that says what is wrong with it.
    """
    return memo.get("checkpoint", (model, task), lambda: model.resolve(task, lambda: load_splits(task, memo)))


def load_material(model: ModelSpec, task: Task, evaluation: Evaluation, memo: Memo) -> Material:
    """Reads data and checkpoint, once. Raises ValueError or OSError that says what is wrong with either."""
    return memo.get("material", (model, task, evaluation), lambda: _load(model, task, evaluation, memo))


def _load(model: ModelSpec, task: Task, evaluation: Evaluation, memo: Memo) -> Material:
    train, _, data_fingerprint = select_rows(task, evaluation, memo)
    rows = tokenized_rows(model, task, evaluation, memo)
    loaded = model.load(resolve_checkpoint(model, task, memo))
    setting = (
        str(task.max_length),
        str(evaluation.batch_size),
        repr(sorted(deciding_environment(loaded.model.device).items())),
    )
    return Material(
        loaded=loaded,
        task=task,
        train=train,
        rows=rows,
        batches=by_length(rows, loaded.tokenizer, evaluation.batch_size),
        sites=all_sites(loaded.model),
        data_fingerprint=data_fingerprint,
        key=digest([loaded.fingerprint, data_fingerprint, *setting, code_digest()]),
    )


def select_rows(task: Task, evaluation: Evaluation, memo: Memo) -> tuple[Examples, Examples, str]:
    """The rows that calibrate, the rows that are answered, and the fingerprint of both."""
    splits = load_splits(task, memo)
    examples = evaluation.rows(splits.evaluation)
    return splits.train, examples, digest([splits.train.fingerprint, examples.fingerprint])


def tokenized_rows(model: ModelSpec, task: Task, evaluation: Evaluation, memo: Memo) -> Tokenized:
    """The rows that are answered, tokenized once. Raises ValueError where the tokenizer makes no token of
    one."""

    def make() -> Tokenized:
        _, examples, _ = select_rows(task, evaluation, memo)
        return tokenize(examples, resolve_checkpoint(model, task, memo).tokenizer, task.max_length)

    return memo.get("rows", (model, task, evaluation), make)


def fp32_predictions(material: Material) -> Predictions:
    """The FP32 model's answers, from the cache folder if any process has computed them for the same key."""
    folder, columns = cache_dir() / "fp32" / material.key, list(material.loaded.label_columns)
    if not folder.is_dir():
        found = predict(material.model, material.batches, range(len(columns)), "FP32 reference")
        with whole_folder(folder) as scratch:
            np.save(scratch / "logits.npy", found.logits)
            np.save(scratch / "seconds.npy", found.seconds)
    # Stored in the model's own order of classes: a task that lists its labels in another one reads the same
    # files.
    return Predictions(
        logits=np.load(folder / "logits.npy")[:, columns], seconds=float(np.load(folder / "seconds.npy"))
    )


def fp32_sketches(material: Material, calibration: Calibration) -> dict[str, Sketch]:
    """Sketches of every site in the FP32 network: they serve every placement, method, estimator and bit
    width."""
    batches = material.calibration_batches(calibration)
    return observe(material.model, material.sites, batches, calibration.counts_padding)
