"""Maps a checkpoint's logits to a task's labels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from quantlab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def label_columns(config: PretrainedConfig, task: Task) -> tuple[tuple[int, ...], str]:
    """The logit's index for each of the task's labels, and how it is known: matched, assumed or regression.

    Names are compared without case, spaces, ``-`` and ``_``. Raises ValueError if they contradict, and if the
    checkpoint does not choose one label of several: multi-label models, or one logit with a threshold.
    """
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    theirs, ours = [[_plain(name) for name in side] for side in (names, task.labels)]
    both = f"the checkpoint answers {names}, task {task.name} wants {list(task.labels) or 'one score'}"
    if config.problem_type == "multi_label_classification":
        raise ValueError(
            f"problem_type is {config.problem_type}, but quantlab judges one label an example: {both}"
        )
    if len(names) == 1 and not task.regression:
        raise ValueError(
            f"one logit is a score that waits for a threshold, not a choice of one label: {both}"
        )
    if len(names) != task.num_labels:
        raise ValueError(f"{len(names)} labels, {task.num_labels} wanted: {both}")
    if config.problem_type is not None and (config.problem_type == "regression") != task.regression:
        raise ValueError(f"problem_type is {config.problem_type}: {both}")
    if task.regression:
        return (0,), "regression"
    if sorted(theirs) == sorted(ours) and len(set(ours)) == len(ours):
        return tuple(theirs.index(name) for name in ours), "matched"
    if all(name in (f"label{index}", str(index)) for index, name in enumerate(theirs)):
        return tuple(range(len(names))), "assumed"
    raise ValueError(f"label names contradict: {both}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", str(name)).lower()
