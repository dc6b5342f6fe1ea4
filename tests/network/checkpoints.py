"""Checkpoints and tasks for the tests of this folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from conftest import SPECIAL

from quantlab.network import checkpoint_files
from quantlab.network.models import Checkpoint, LoadedModel
from quantlab.tasks.glue import Glue
from quantlab.tasks.task import Task

QNLI = ("entailment", "not_entailment")


def task_of(labels: tuple[str, ...] = QNLI, max_length: int = 32) -> Task:
    metric = "accuracy" if labels else "pearson"
    return Glue(
        name="t",
        config="qnli",
        text=("question", "sentence"),
        labels=labels,
        metrics=(metric,),
        max_length=max_length,
    )


def load(path: Path | str, task: Task | None = None, **settings: str) -> LoadedModel:
    model, task = Checkpoint(path=str(path), **settings), task or task_of()
    return model.load(model.resolve(task, task.load))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tokenizer_of(folder: Path, words: Sequence[str], **settings: object) -> None:
    """Replaces the folder's tokenizer by one of these words."""
    for name in checkpoint_files.TOKENIZER:
        (folder / name).unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", **settings})
    )
