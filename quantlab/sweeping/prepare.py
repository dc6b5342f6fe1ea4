"""From a sweep's YAML and the command line to trials with keys, all checked before the first one runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from quantlab.cache import digest
from quantlab.config import RunConfig
from quantlab.evaluation import Evaluation
from quantlab.material import resolved
from quantlab.memo import Memo
from quantlab.sweeping.spec import Axes, Row, Sweep, rows
from quantlab.sweeping.store import Store
from quantlab.tracking.base import Tracker
from quantlab.trial import check, timing_of, trial_key


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One row of a sweep, found to be runnable."""

    row: Row
    key: str
    timing: str  # names the circumstances of its latencies; empty where nothing is timed
    overrides: Sequence[str]  # all that Hydra composes it from
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweeping:
    """One sweep on its way."""

    sweep: Sweep
    tracking: Tracker
    store: Store
    trials: Sequence[Trial]

    @property
    def unique(self) -> dict[str, Trial]:
        """The trials by key, each once: two rows may ask for the same one."""
        found: dict[str, Trial] = {}
        for trial in self.trials:
            found.setdefault(trial.key, trial)
        return found

    @property
    def folder(self) -> Path:
        """The sweep's own files, named by what it asks of which trials: another checkpoint or code, another folder."""
        asked = digest([self.sweep.question, *(f"{trial.key} {trial.row.name}" for trial in self.trials)])
        return self.store.root / "sweeps" / f"{self.sweep.name}-{asked[:8]}"


def prepare(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> Sweeping:
    """Composes and checks every trial: names, globs, files and folders. No weight is loaded yet.

    Raises ValueError or OSError where one of them cannot run, and Hydra's own errors where one does not compose.
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    fixed = [item for item in overrides if not item.is_sweep_override()]
    with _hydra_config_kept():
        base, memo = composed(loader, master, [str(item.input_line) for item in fixed]), Memo()
        found = rows(base.sweep, _axes(overrides), lambda: _layers(base, memo))
        given = [str(item.input_line) for item in fixed if item.get_key_element() not in found[0].overrides]
        trials = [_checked(row, [*given, *_lines(row)], loader, master, memo) for row in found]
    store = Store(Path(master.hydra.sweep.dir).absolute())
    return Sweeping(sweep=base.sweep, tracking=base.tracking, store=store, trials=trials)


def composed(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> RunConfig:
    """The components of one trial, as its own process will build them."""
    settings = loader.load_sweep_config(master, list(overrides))
    HydraConfig.instance().set_config(settings)
    with open_dict(settings):
        del settings["hydra"]
    config: RunConfig = instantiate(settings)
    return config


def _checked(row: Row, overrides: list[str], loader: ConfigLoader, master: DictConfig, memo: Memo) -> Trial:
    config = composed(loader, master, overrides)
    try:
        check(config, memo)
    except (ValueError, OSError) as error:
        raise ValueError(f"trial {row.name!r}: {error}") from error
    key, timing = trial_key(config, memo), timing_of(config)
    return Trial(row=row, key=key, timing=timing, overrides=overrides, evaluation=config.evaluation)


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


def _lines(row: Row) -> list[str]:
    return [f"{key}={value}" for key, value in row.overrides.items()]


def _layers(config: RunConfig, memo: Memo) -> int:
    return int(resolved(config.model, config.task, memo).skeleton.config.num_hidden_layers)


@contextmanager
def _hydra_config_kept() -> Iterator[None]:
    kept = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = kept
