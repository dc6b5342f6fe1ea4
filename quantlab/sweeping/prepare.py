"""From a sweep's YAML and the command line to trials with keys, all checked before the first one runs."""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict, read_write

from quantlab.evaluation.answering import Evaluation
from quantlab.results.store import TrialStore
from quantlab.storage.files import digest
from quantlab.storage.memo import Memo
from quantlab.sweeping.folders import hydra_config
from quantlab.sweeping.run_config import RunConfig
from quantlab.sweeping.sweep import DEEPEST, LAYER, Axes, Sweep, SweepRow, setting_of, sweep_rows
from quantlab.tracking.tracker import Tracker
from quantlab.trial.config import check_trial
from quantlab.trial.key import trial_key, trial_timing_key
from quantlab.trial.material import resolve_checkpoint

Compose = Callable[[Iterable[str]], DictConfig]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedTrial:
    """One row of a sweep, found to be runnable."""

    row: SweepRow
    key: str  # names the folder of its files; see with_timing_names
    timing: str  # names the circumstances of its latencies; empty where nothing is timed
    overrides: Sequence[str]  # all that Hydra composes it from
    params: Mapping[str, str]  # its settings, as a tracker records them
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedSweep:
    """One sweep on its way."""

    sweep: Sweep
    tracking: Tracker
    store: TrialStore
    trials: Sequence[PreparedTrial]

    @cached_property
    def unique(self) -> dict[str, PreparedTrial]:
        """The trials by key, each once: two rows may ask for the same one."""
        found: dict[str, PreparedTrial] = {}
        for trial in self.trials:
            found.setdefault(trial.key, trial)
        return found

    @cached_property
    def folder(self) -> Path:
        """The sweep's own files, named by what it asks of which trials: another checkpoint or code, another
        folder."""
        asked = digest([self.sweep.question, *(f"{trial.key} {trial.row.name}" for trial in self.trials)])
        return self.store.root / "sweeps" / f"{self.sweep.name}-{asked[:8]}"


def prepare_sweep(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> PreparedSweep:
    """Composes and checks every trial: names, globs, files and folders. Then trains what ``training=`` asks
    for and is not there; no other weight is loaded yet.

    Raises ValueError or OSError where one of them cannot run, and Hydra's own errors where one does not
    compose.
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    fixed = {
        item.get_key_element(): str(item.input_line) for item in overrides if not item.is_sweep_override()
    }
    with hydra_config(master):
        store = TrialStore(_sweep_dir(master))
        compose, memo = partial(_composed, loader, master), Memo()
        base = compose(fixed.values())  # what it lacks, the rows may set
        sweep: Sweep = instantiate(base.sweep, _convert_="all")
        found = sweep_rows(sweep, _axes(overrides), partial(_layers, compose, fixed, memo))
        checked = [_checked(row, _lines(fixed, row.overrides), compose, memo) for row in found]
        for view in sweep.views:
            for trial in checked if view.compares_rows else ():
                trial.config.evaluation.require_all_rows(f"the sweep's view {type(view).__name__}")
        trials = with_timing_names([_prepared(trial, memo) for trial in checked])
        tracking: Tracker = instantiate(base.tracking, _convert_="all")
    return PreparedSweep(sweep=sweep, tracking=tracking, store=store, trials=trials)


def _composed(loader: ConfigLoader, master: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The settings of one trial, as its own process will compose them."""
    settings = loader.load_sweep_config(master, list(overrides))
    HydraConfig.instance().set_config(settings)
    with open_dict(settings):
        del settings["hydra"]
    return settings


def _sweep_dir(master: DictConfig) -> Path:
    """The sweep's folder, one for all trials: what its name interpolates (``${now:...}``) is resolved
    once."""
    with read_write(master.hydra.sweep):
        master.hydra.sweep.dir = str(Path(master.hydra.sweep.dir).absolute())
    return Path(master.hydra.sweep.dir)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Checked:
    row: SweepRow
    overrides: Sequence[str]
    config: RunConfig
    params: Mapping[str, str]


def _checked(row: SweepRow, overrides: list[str], compose: Compose, memo: Memo) -> _Checked:
    try:
        config: RunConfig = instantiate(compose(overrides))
        check_trial(config, memo)
    except (ValueError, OSError) as error:
        raise ValueError(f"trial {row.name!r}: {error}") from error
    return _Checked(row=row, overrides=overrides, config=config, params=config.params())


def _prepared(trial: _Checked, memo: Memo) -> PreparedTrial:
    try:
        key, timing = trial_key(trial.config, memo), trial_timing_key(trial.config)
    except (ValueError, OSError, FloatingPointError) as error:
        raise ValueError(f"trial {trial.row.name!r}: {error}") from error
    return PreparedTrial(
        row=trial.row,
        key=key,
        timing=timing,
        overrides=trial.overrides,
        params=trial.params,
        evaluation=trial.config.evaluation,
    )


def with_timing_names(trials: Sequence[PreparedTrial]) -> list[PreparedTrial]:
    """The trials; where some differ in their profile alone and so have one key, the timing goes on their
    names."""
    timings: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        timings[trial.key].add(trial.timing)
    return [
        replace(trial, key=f"{trial.key}-{trial.timing[:8] or 'untimed'}")
        if len(timings[trial.key]) > 1
        else trial
        for trial in trials
    ]


def _axes(overrides: Sequence[Override]) -> Axes:
    return {
        item.get_key_element(): [_yaml(text) for text in item.sweep_string_iterator()]
        if item.is_sweep_override()
        else [item.get_value_element_as_str()]
        for item in overrides
    }


def _yaml(text: str) -> str:
    """Hydra spells swept booleans as Python does."""
    return text.lower() if text in ("True", "False") else text


def _lines(fixed: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """What one trial is composed from: all that the command line fixes, but for what the trial sets
    itself."""
    kept = [line for key, line in fixed.items() if key not in own]
    return [*kept, *(f"{key}={value}" for key, value in own.items())]


def _layers(compose: Compose, fixed: Mapping[str, str], memo: Memo, axes: Axes) -> int:
    """How many layers the model has that these axes set. Raises ValueError where they set models of several
    depths."""
    deciding = {key: values for key, values in axes.items() if re.match(r"(model|task)\b", setting_of(key))}
    found = {}
    for values in itertools.product(*deciding.values()):
        settings = compose(_lines(fixed, dict(zip(deciding, values, strict=True))))
        model, task = (instantiate(settings[name], _convert_="all") for name in ("model", "task"))
        found[int(resolve_checkpoint(model, task, memo).skeleton.config.num_hidden_layers)] = " ".join(values)
    if len(found) > 1:
        depths = ", ".join(f"{depth} ({which})" for depth, which in found.items())
        raise ValueError(
            f"{LAYER} and {DEEPEST} need models of one depth in a block; these have {depths} layers"
        )
    return next(iter(found))
