"""Reads the trials of sweeps' and trials' folders as studies."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import OmegaConf

from quantlab.cli.secrets import without_password
from quantlab.results.reading import Study, TrialRecord, as_studies, as_study, summary_of
from quantlab.results.store import finished_summary
from quantlab.results.table import short_names
from quantlab.trial.result import RESULT

TABLE = "results.csv"
ROW = {"number", "block", "name", "key", "status", "reference", "alarms", "error"}
OVERRIDES = Path(".hydra") / "overrides.yaml"
NOT_REPEATED = ("sweep.", "hydra.", "tracking", "launcher")  # overrides that decide no number
RUN = "python -m quantlab.run"


def is_sweep(folder: Path) -> bool:
    """Whether the folder is that of a sweep that has ended."""
    return (folder / TABLE).is_file()


def from_folders(folders: Sequence[Path]) -> Study:
    """The trials of a sweep, or of single folders, as one study.

    Raises ValueError where a folder is neither, and MixedTrialsError where the trials do not compare.
    """
    source = _source(folders)
    return source.completed(as_study(source.title, source.trials, source.root))


def studies_from_folders(folders: Sequence[Path]) -> list[Study]:
    """The trials of sweeps, or of single folders: one study for each checkpoint, task and set of examples."""
    source = _source(folders)
    return [source.completed(one) for one in as_studies(source.title, source.trials, source.root)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """What folders hold: their trials, and what they say of all of them."""

    title: str
    trials: Sequence[TrialRecord]
    sweeps: Sequence[Path] = ()  # empty where a folder is a single trial's

    @property
    def root(self) -> Path | None:
        return self.sweeps[0].absolute().parents[1] if self.sweeps else None

    def completed(self, study: Study) -> Study:
        """The study with the alarms, the command and the evaluation of its sweep."""
        if not self.sweeps:
            return study
        alarms = tuple(alarm for folder in self.sweeps for alarm in _alarms(folder))
        again = _again(self.sweeps[0]) if len(self.sweeps) == 1 else ""
        evaluation = _evaluation(self.sweeps[0], study.evaluation)
        return replace(study, alarms=alarms, command=again, evaluation=evaluation)


def _source(folders: Sequence[Path]) -> _Source:
    for folder in folders:
        if not is_sweep(folder) and not (folder / RESULT).is_file():
            what = "has neither" if folder.is_dir() else "is no folder with"
            raise ValueError(
                f"{folder} {what} {TABLE} (of a sweep that ended: multirun/sweeps/<name>) nor "
                f"{RESULT} (of a trial)"
            )
    rows = [
        trial for folder in folders for trial in (_rows(folder) if is_sweep(folder) else [_single(folder)])
    ]
    trials = [replace(trial, number=number) for number, trial in enumerate(rows, start=1)]
    if all(map(is_sweep, folders)):
        title = " and ".join(dict.fromkeys(_question(folder) for folder in folders))
        return _Source(title=title, trials=trials, sweeps=folders)
    return _Source(title="Trials compared", trials=_told_apart(trials))


def _rows(folder: Path) -> list[TrialRecord]:
    """The rows of a sweep's table, each with the files of its trial."""
    table = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False)
    root = folder.absolute().parents[1]
    records = []
    for row in table.to_dict("records"):
        place = root / "trials" / row["key"]
        own = finished_summary(place, row["key"])
        error = row["error"] or (
            "" if own else f"{place / RESULT} is not there, not whole, or another trial's"
        )
        records.append((row, place, own, error))
    metrics = {name for _, _, own, _ in records if own for name in own["metrics"]}
    swept = [str(name) for name in table.columns if name not in ROW | metrics]
    return [
        TrialRecord(
            number=int(row["number"]),
            name=row["name"],
            folder=place,
            summary=own,
            error=error,
            command=command(place),
            settings={name: row[name] for name in swept if row[name]},
        )
        for row, place, own, error in records
    ]


def _single(folder: Path) -> TrialRecord:
    """A trial on its own, named by its folder."""
    folder = folder.absolute()
    return TrialRecord(
        number=0, name=folder.name, folder=folder, summary=summary_of(folder), command=command(folder)
    )


def _told_apart(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Single trials, named by the settings in which they differ."""
    flat = [_flat(trial.summary["config"] if trial.summary else {}) for trial in trials]
    names = dict.fromkeys(name for settings in flat for name in settings)
    varying = [name for name in names if len({settings.get(name) for settings in flat}) > 1]
    short = short_names(varying)
    told = []
    for trial, settings in zip(trials, flat, strict=True):
        own = {name: settings[name] for name in varying if name in settings}
        words = " ".join(
            value if name.endswith("_target_") else f"{short[name]}={value}" for name, value in own.items()
        )
        told.append(replace(trial, name=f"{trial.name}: {words}" if words else trial.name, settings=own))
    return told


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """``{"bits.weights": "8"}``: the leaves of a config as texts; a component by its class."""
    if not isinstance(tree, Mapping):
        return {prefix: tree.rsplit(".", 1)[1] if prefix.endswith("_target_") else str(tree)}
    parts = [_flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in tree.items()]
    return {name: value for part in parts for name, value in part.items()}


def _settings(folder: Path) -> dict[str, Any]:
    """The config that Hydra composed for a sweep; empty where its file is missing."""
    path = folder / "multirun.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _evaluation(folder: Path, first: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sweep's evaluation settings: a trial that it reuses may have run with another holdout or seed."""
    settings = OmegaConf.create(_settings(folder))
    if "evaluation" not in settings:
        return first
    own: Any = OmegaConf.to_container(settings.evaluation, resolve=True)
    return {**first, **own}


def _again(folder: Path) -> str:
    """The command that runs a sweep again; "" where its overrides are not known."""
    hydra = _settings(folder).get("hydra", {})
    overrides = hydra.get("overrides", {}).get("task")
    return _line("-m", *_config_dir(hydra), *overrides) if overrides is not None else ""


def _config_dir(hydra: Mapping[str, Any]) -> list[str]:
    """``--config-dir`` as it was typed, from what Hydra kept of itself."""
    sources = hydra.get("runtime", {}).get("config_sources", [])
    return [
        f"--config-dir={source['path']}" for source in sources if source.get("provider") == "command-line"
    ]


def _alarms(folder: Path) -> list[tuple[str, str]]:
    """Alarms of the sweep as a whole, names and messages."""
    path = folder / "alarms.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()
    return [(row["name"], row["message"]) for row in table.to_dict("records")]


def _question(folder: Path) -> str:
    """The sweep's question, else its name."""
    sweep = _settings(folder).get("sweep") or {}
    return str(sweep.get("question") or sweep.get("name") or folder.name)


def command(folder: Path) -> str:
    """The command that runs a trial again, from the overrides that Hydra kept; "" where there are none."""
    path = folder / OVERRIDES
    if not path.is_file():
        return ""
    overrides = [str(item) for item in yaml.safe_load(path.read_text(encoding="utf-8"))]
    kept = [item for item in overrides if not item.lstrip("+~").startswith(NOT_REPEATED)]
    alone = ["sweep.trials=[]"] if any(item.startswith("+sweeps=") for item in kept) else []
    hydra = path.with_name("hydra.yaml")
    own = yaml.safe_load(hydra.read_text(encoding="utf-8"))["hydra"] if hydra.is_file() else {}
    return _line(*_config_dir(own), *kept, *alone)


def _line(*words: Any) -> str:
    """The command line as one types it, without passwords: these come from the environment."""
    return without_password(shlex.join([*RUN.split(), *map(str, words)]))
