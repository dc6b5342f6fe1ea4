"""What trials of one model, task and evaluation share: loaded and computed once a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantlab.calibration.estimators import Calibration
from quantlab.calibration.probe import observe
from quantlab.evaluation.answering import Evaluation, Predictions, predict, predict_until_decided
from quantlab.evaluation.verdicts import SequentialTest
from quantlab.network.architecture import all_sites
from quantlab.network.models import LoadedModel, ModelSpec, ResolvedCheckpoint
from quantlab.network.sites import Site
from quantlab.quant.sketch import Sketch
from quantlab.storage.files import cache_dir, code_digest, digest, whole_folder
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Batch, Encoded, by_length
from quantlab.tasks.examples import Examples
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.scores import Kind
from quantlab.tasks.task import Splits, Task
from quantlab.trial.environment import deciding_environment

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedRows:
    """The rows of a task's data that a trial uses."""

    train: Examples  # calibration draws from these
    evaluation: Examples  # the model answers these
    fingerprint: str  # of both


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """A loaded model and the task's encoded rows."""

    loaded: LoadedModel
    task: Task
    train: Examples
    rows: Encoded  # the rows that are answered
    batches: list[Batch]  # of these rows
    evaluation: Evaluation
    sites: list[Site]  # all of the model's
    clusters: np.ndarray | None  # (N,) of these rows: which belong together; None: each stands alone
    data_fingerprint: str  # of the rows that calibrate and the rows that are answered
    data_tags: Mapping[str, str]  # what the task says of its data
    key: str  # digest of checkpoint, data, batching, environment and code
    observed: Memo = field(default_factory=Memo)  # sketches of the FP32 network's sites in bases and splits

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    def predict(self, title: str) -> Predictions:
        """Answers all evaluation rows with the model as it is, under a progress bar with this title."""
        return predict(self.model, self.batches, self.loaded.label_columns, title)

    def answer(self, reference: Predictions, title: str) -> Predictions:
        """Answers the evaluation rows with the model as it is: all, or until its loss against the FP32
        model's answers ``reference`` is decided."""
        if (test := self.test(reference)) is None:
            return self.predict(title)
        loaded, size = self.loaded, self.evaluation.batch_size
        batched = partial(by_length, self.rows, loaded.processor, size)
        return predict_until_decided(self.model, test, batched, loaded.label_columns, title)

    def test(self, reference: Predictions) -> SequentialTest | None:
        """Returns what decides when enough rows are answered, given the FP32 model's answers to all rows;
        None where all rows must be answered."""
        primary = self.task.metrics[0]
        return self.evaluation.test(primary, self.rows.labels, reference.logits, self.clusters)

    def calibration_batches(self, calibration: Calibration) -> list[Batch]:
        """Returns the rows that calibrate, encoded and in batches."""
        return calibration.batches(self.train, self.loaded.processor, self.task.max_length)


def load_splits(task: Task, memo: Memo) -> Splits:
    """Loads the task's data, once. Raises ValueError or OSError if something is wrong with it."""
    return memo.get("splits", task, task.load)


def resolve_checkpoint(model: ModelSpec, task: Task, memo: Memo) -> ResolvedCheckpoint:
    """Finds the model's checkpoint, once: the hub is asked and files are hashed here only.

    Raises ValueError or OSError if something is wrong with it.
    """
    return memo.get("checkpoint", (model, task), lambda: model.resolve(task, lambda: load_splits(task, memo)))


def units(model: ModelSpec, task: Task, memo: Memo) -> tuple[Examples, Examples]:
    """The units of the training and of the evaluation split, once. Raises ValueError where there are none."""

    def make() -> tuple[Examples, Examples]:
        splits, processor = load_splits(task, memo), resolve_checkpoint(model, task, memo).processor
        return task.units(splits.train, processor), task.units(splits.evaluation, processor)

    return memo.get("units", (model, task), make)


def data_tags(model: ModelSpec, task: Task, memo: Memo) -> dict[str, str]:
    """What the task says of its data: of what was read, and of the units that it evaluates."""
    splits = load_splits(task, memo)
    return {**splits.tags, **task.unit_tags(splits.evaluation, units(model, task, memo)[1])}


def select_rows(model: ModelSpec, task: Task, evaluation: Evaluation, memo: Memo) -> SelectedRows:
    """Selects the rows that the trial calibrates and answers, once."""

    def select() -> SelectedRows:
        train, all_rows = units(model, task, memo)
        answered = evaluation.rows(all_rows)
        fingerprint = digest([train.fingerprint, answered.fingerprint])
        return SelectedRows(train=train, evaluation=answered, fingerprint=fingerprint)

    return memo.get("selected rows", (model, task, evaluation), select)


def encoded_rows(model: ModelSpec, task: Task, evaluation: Evaluation, memo: Memo) -> Encoded:
    """Encodes the rows that are answered, once. Raises ValueError if a row has no token."""

    def make() -> Encoded:
        examples = select_rows(model, task, evaluation, memo).evaluation
        return examples.encode(resolve_checkpoint(model, task, memo).processor, task.max_length)

    return memo.get("rows", (model, task, evaluation), make)


def load_material(model: ModelSpec, task: Task, evaluation: Evaluation, memo: Memo) -> Material:
    """Loads data and model, once. Raises ValueError or OSError if something is wrong with either."""

    def load() -> Material:
        selected = select_rows(model, task, evaluation, memo)
        rows = encoded_rows(model, task, evaluation, memo)
        loaded = model.load(resolve_checkpoint(model, task, memo))
        if loaded.head == TOKENS:  # each row is answered in one pass
            loaded.model.config.get_text_config().use_cache = False
        setting = (
            str(task.max_length),
            str(evaluation.batch_size),
            repr(sorted(deciding_environment(loaded.model.device).items())),
        )
        return Material(
            loaded=loaded,
            task=task,
            train=selected.train,
            rows=rows,
            evaluation=evaluation,
            batches=by_length(rows, loaded.processor, evaluation.batch_size),
            sites=all_sites(loaded.model),
            clusters=selected.evaluation.clusters,
            data_fingerprint=selected.fingerprint,
            data_tags=data_tags(model, task, memo),
            key=digest([loaded.fingerprint, selected.fingerprint, *setting, code_digest()]),
        )

    return memo.get("material", (model, task, evaluation), load)


def fp32_predictions(material: Material) -> Predictions:
    """Returns the FP32 model's answers. Reads them from the cache folder, or computes and stores them there.

    The files have the model's own order of classes, so they serve every order of labels that a task lists.
    """
    folder, columns = cache_dir() / "fp32" / material.key, list(material.loaded.label_columns)
    if not folder.is_dir():
        computed = predict(material.model, material.batches, range(len(columns)), "FP32 reference")
        with whole_folder(folder) as scratch:
            np.save(scratch / "logits.npy", computed.logits)
            np.save(scratch / "seconds.npy", computed.seconds)
    values = np.load(folder / "logits.npy")
    return Predictions(
        logits=values[:, columns] if material.task.kind in (Kind.CLASSES, Kind.REGRESSION) else values,
        seconds=float(np.load(folder / "seconds.npy")),
    )


def fp32_sketches(material: Material, calibration: Calibration) -> dict[str, Sketch]:
    """Returns a sketch of every site of the FP32 network, by name.

    They serve every placement, method, estimator and bit width.
    """
    batches = material.calibration_batches(calibration)
    return observe(
        material.model,
        material.sites,
        batches,
        calibration.counts_padding,
        tokens=calibration.sees_tokens,
    )
