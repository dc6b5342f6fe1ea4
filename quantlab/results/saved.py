"""A finished trial's folder, read back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantlab.plan.plan import QuantPlan, read_plan
from quantlab.results.answers import SavedAnswers, read_answers
from quantlab.results.reading import summary_of
from quantlab.trial.result import RESULT

CONFIG, PLAN, ANSWERS = "config.yaml", "plan.json", "answers.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedTrial:
    """What a trial's folder holds. Nothing of it is run: the folder may come from elsewhere."""

    folder: Path
    config: Mapping[str, Any]  # plain data, each component with the class that it names (``_target_``)
    plan: QuantPlan
    metrics: Mapping[str, Any]  # docs/numbers.md says what each means
    tags: Mapping[str, str]
    alarms: Sequence[Mapping[str, str]]  # each with a name and a message
    answers: SavedAnswers  # labels (N,), and logits (N, classes) of the trial and of FP32


def load_trial(path: str | Path) -> SavedTrial:
    """Reads a trial's folder, or the folder around its plan.json.

    Raises FileNotFoundError where a file is missing, as in a trial that did not finish, and ValueError that
    names the file that is broken.
    """
    folder = _folder(Path(path))
    for name in (CONFIG, PLAN, ANSWERS, RESULT):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no finished trial: it has no {name}")
    summary, answers = summary_of(folder), read_answers(folder)
    assert summary is not None and answers is not None  # their files are there
    return SavedTrial(
        folder=folder,
        config=_config(folder / CONFIG),
        plan=load_plan(folder),
        metrics=summary["metrics"],
        tags=summary["tags"],
        alarms=summary["alarms"],
        answers=answers,
    )


def load_plan(path: Path) -> QuantPlan:
    """Reads a plan.json, or the one in a trial's folder. Raises OSError or ValueError that names the file."""
    file = path / PLAN if path.is_dir() else path
    try:
        return read_plan(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _folder(path: Path) -> Path:
    return path.parent if path.name == PLAN else path


def _config(file: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{file} is no trial's config")
    return config
