"""Maps a checkpoint's logits to a task's labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from quantlab.config.checks import nearest
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def label_columns(
    config: PretrainedConfig, task: Task, data_classes: Callable[[], Mapping[str, str]]
) -> tuple[tuple[int, ...], str]:
    """The logit's index for each of the task's labels, and how it is known: matched, assumed or regression.

    A task of next tokens has no labels: (), "". ``data_classes`` reads the data's, each with the place where
    it first occurs; they count where the task names none. Names are compared without case, spaces, ``-`` and
    ``_``. Raises ValueError if they contradict, and if the checkpoint does not choose one label of several:
    multi-label models, or one logit with a threshold.
    """
    if task.head == TOKENS:
        return (), ""
    classes = {} if task.labels or task.regression else data_classes()
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    wanted = list(task.labels or classes)
    both = f"the checkpoint answers {names}, task {task.name} wants {wanted or 'one score'}"
    if config.problem_type == "multi_label_classification":
        raise ValueError(
            f"problem_type is {config.problem_type}, but quantlab judges one label an example: {both}"
        )
    if len(names) == 1 and not task.regression:
        raise ValueError(
            f"one logit is a score that waits for a threshold, not a choice of one label: {both}"
        )
    if config.problem_type is not None and (config.problem_type == "regression") != task.regression:
        raise ValueError(f"problem_type is {config.problem_type}: {both}")
    if wanted and not task.labels:
        return _columns_of_data(names, classes)
    if len(names) != max(len(wanted), 1):
        raise ValueError(f"{len(names)} labels, {max(len(wanted), 1)} wanted: {both}")
    if task.regression:
        return (0,), "regression"
    theirs, ours = ([_plain(name) for name in side] for side in (names, wanted))
    if sorted(theirs) == sorted(ours) and len(set(ours)) == len(ours):
        return tuple(theirs.index(name) for name in ours), "matched"
    if _unnamed(names):
        return tuple(range(len(names))), "assumed"
    raise ValueError(f"label names contradict: {both}")


def _columns_of_data(names: Sequence[str], classes: Mapping[str, str]) -> tuple[tuple[int, ...], str]:
    """The logits of the data's classes, then those of the checkpoint's other classes.

    Names that match decide, or else whole numbers from 0, which are the checkpoint's own indices.
    """
    theirs, ours = ([_plain(name) for name in side] for side in (names, classes))
    numbers = [int(name) for name in classes if name.isdecimal()]
    if len(set(theirs)) == len(theirs) and len(set(ours)) == len(ours) and set(ours) <= set(theirs):
        columns, order = [theirs.index(name) for name in ours], "matched"
    elif len(numbers) == len(classes) and 0 in numbers and max(numbers) < len(names):
        columns, order = numbers, "assumed"
    elif _unnamed(names):
        raise ValueError(
            f"the checkpoint's labels have no names ({', '.join(names)}): say which is which with "
            f"task.labels=[{','.join(classes)}], in the order of its indices"
        )
    else:
        strange = [name for name, plain in zip(classes, ours, strict=True) if plain not in theirs]
        indices = [str(index) for index in range(len(names))]
        # Among indices, what is no index is the mistake.
        unknown = next((name for name in strange if name not in indices), next(iter(strange), ""))
        raise ValueError(
            f"{classes.get(unknown, 'task.labels')}: the checkpoint does not know label "
            f"{unknown!r}{nearest(unknown, names)}; it answers {', '.join(names)}"
        )
    return (*columns, *(index for index in range(len(names)) if index not in columns)), order


def _unnamed(names: Sequence[str]) -> bool:
    """Whether a checkpoint calls its labels LABEL_0, LABEL_1, ... or by their indices."""
    return all(_plain(name) in (f"label{index}", str(index)) for index, name in enumerate(names))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", str(name)).lower()
