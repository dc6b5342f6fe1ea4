"""Trains a classifier once, for every later trial.

The result lies in the cache folder under a key of all that decides its weights: the base checkpoint, the
train split, the labels, the recipe. The same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console

from quantlab.evaluation.answering import CONSTANT_SHARE, largest_share, predict
from quantlab.network import checkpoint
from quantlab.network.architecture import skeleton_of
from quantlab.network.compatibility import check_fit, check_token_types
from quantlab.network.models import FineTuned, ModelSpec
from quantlab.network.processors import Processor, read_processor
from quantlab.storage.files import whole_folder
from quantlab.tasks.batching import Encoded, Tokenized, by_length
from quantlab.tasks.heads import CLASSES, has_head
from quantlab.tasks.scores import compute, mean_loss
from quantlab.tasks.task import Splits, Task
from quantlab.training.losses import loss_for
from quantlab.training.recipe import train

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What ``conf/finetune.yaml`` builds."""

    model: ModelSpec
    task: Task

    def run(self, console: Console) -> Path:
        """Trains and stores the model unless it is there, and returns its folder."""
        if not isinstance(self.model, FineTuned):
            raise ValueError(
                "this model is a checkpoint already; train with model=minilm, or with model=bert_base and "
                "model.base.path=<folder or hub name>"
            )
        data, base = self.task.load(), self.model.base.folder()
        target = self.model.target(self.task, data, base)
        if target.is_dir():
            console.print(f"already there: {target}")
            return target
        with whole_folder(
            target
        ) as scratch:  # made first, so that a read-only cache fails before hours of training
            state = target.parent / f".{target.name}.state"
            scores = finetune(self.model, self.task, data, base, scratch, state)
        state.unlink(missing_ok=True)
        console.print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        console.print(f"stored in {target}")
        return target


def finetune(
    spec: FineTuned, task: Task, data: Splits, base: Path, folder: Path, state: Path
) -> dict[str, float]:
    """Trains ``base``, writes model, processor and recipe.json into ``folder``, returns the evaluation's
    metrics. A run that is killed goes on from the file ``state``."""
    device, classes = spec.torch_device(), len(task.classes(data)) or 1
    config = checkpoint.read_config(base)
    require_trainable(config, task, base)
    processor, skeleton = read_processor(base, task.head), skeleton_of(config, task.head)
    check_fit(skeleton, processor, task, base)
    rows = spec.recipe.examples(data.train).encode(processor, task.max_length)
    answered = data.evaluation.encode(processor, task.max_length)  # unreadable rows end it here
    if isinstance(rows, Tokenized):
        check_token_types(rows, skeleton, base)
    with torch.random.fork_rng(
        [device] if device.type == "cuda" else []
    ):  # the caller's random state is its own
        torch.manual_seed(spec.recipe.seed)
        model = with_head(base, task, data)
        if task.head == CLASSES:  # a decoder answers at the last token that is no padding
            model.config.pad_token_id = processor.pad_token_id
        model.to(device)  # type: ignore[arg-type]
        loss = loss_for(task.head, range(classes))
        train(model, processor, rows, spec.recipe, loss, state=state)
    logits = evaluation_logits(model, processor, answered, classes)
    require_learnt(task.classes(data), logits, data.evaluation.labels)
    with checkpoint.quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    scores = compute(task.metrics, logits, data.evaluation.labels)
    scores["loss"] = mean_loss(task.kind, logits, data.evaluation.labels)
    write_card(folder, spec, task, data, scores)
    return scores


def with_head(base: Path, task: Task, data: Splits) -> PreTrainedModel:
    """The encoder with a new head for the task. Raises ValueError where tensors of the encoder itself are
    missing."""
    names = dict(enumerate(task.classes(data) or ("score",)))
    kind = "regression" if task.regression else "single_label_classification"
    ids = {name: index for index, name in names.items()}
    model, missing = checkpoint.read_network(
        base, task.head, num_labels=len(names), id2label=names, label2id=ids, problem_type=kind
    )
    if lost := checkpoint.encoder_tensors(missing, model):
        raise ValueError(f"{base} lacks {', '.join(lost[:8])}: the encoder is not whole")
    return model


def require_trainable(config: PretrainedConfig, task: Task, base: Path) -> None:
    """Raises ValueError if the architecture has no head for what the task asks for."""
    if not has_head(config, task.head):
        raise ValueError(
            f"{base}: {config.model_type} cannot learn {task.head}, which task {task.name} asks for"
        )


def evaluation_logits(
    model: PreTrainedModel, processor: Processor, rows: Encoded, columns: int
) -> np.ndarray:
    """Logits of shape (N, columns) for the rows, in FP32."""
    batches = by_length(rows, processor, EVALUATION_BATCH)
    return predict(model, batches, range(columns), "evaluating").logits


def require_learnt(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> None:
    """Raises ValueError if a classifier gives nearly all rows one class and the labels do not.

    ``names`` are the classes'; none for a regression, which is not checked.
    """
    if not names or largest_share(labels) >= CONSTANT_SHARE:
        return
    classes, counts = np.unique(logits.argmax(-1), return_counts=True)
    if counts.max() >= CONSTANT_SHARE * len(labels):
        raise ValueError(
            f"training did not work: it answers {names[classes[counts.argmax()]]!r} to {counts.max():,} of "
            f"{len(labels):,} evaluation rows, so nothing is stored; try a lower "
            "model.recipe.learning_rate, more model.recipe.epochs or another model.recipe.seed"
        )


def write_card(folder: Path, spec: FineTuned, task: Task, data: Splits, scores: dict[str, float]) -> None:
    """recipe.json: how this model was made, and how well it does."""
    card = {
        "task": task.name,
        "labels": task.classes(data),
        "max_length": task.max_length,
        "recipe": asdict(spec.recipe),
        "fingerprints": {"train": data.train.fingerprint, "evaluation": data.evaluation.fingerprint},
        "evaluation": scores,
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }
    (folder / "recipe.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
