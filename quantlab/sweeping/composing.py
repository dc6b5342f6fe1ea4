"""Hydra's settings of a sweep's many trials, with what they share composed once.

Hydra reads the defaults list and merges its files anew for each trial, a sixth of a second. Trials that
choose the same groups differ in single values only: these are put into a copy.
"""

import pickle
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

TRIALS_OWN = "hydra.sweep."  # of Hydra's own settings, those that differ between trials


class TrialsLoader(ConfigLoaderImpl):
    """Composes a trial as Hydra does, to the same result; groups that were composed before are copied."""

    def __init__(self, loader: ConfigLoader) -> None:
        super().__init__(loader.get_search_path())
        self._composed: dict[tuple[str, ...], bytes] = {}  # pickles: five times as fast to copy as objects
        self._files: IConfigRepository | None = None

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The settings of one trial. Raises Hydra's own errors."""
        parsed = OverridesParser.create().parse_overrides(sweep_overrides)
        files = self._files_of(master_config)
        values = [item for item in parsed if _is_value(item, files)]
        shared = tuple(str(item.input_line) for item in parsed if item not in values)
        if not values or any(item.input_line is None for item in parsed):
            return super().load_sweep_config(master_config, sweep_overrides)
        if shared not in self._composed:
            composed = super().load_sweep_config(master_config, list(shared))
            self._composed[shared] = pickle.dumps(composed)
        settings: DictConfig = pickle.loads(self._composed[shared])
        self._apply_overrides_to_config(values, settings)
        _name_overrides(settings, parsed)
        return settings

    def __getstate__(self) -> dict[str, object]:
        """What goes to another process, which composes for itself."""
        return {**vars(self), "_composed": {}, "_files": None}

    def _files_of(self, master: DictConfig) -> IConfigRepository:
        """The groups and files that the sweep finds, those in its ``hydra.searchpath`` among them."""
        if self._files is None:
            name, typed = master.hydra.job.config_name, list(master.hydra.overrides.hydra)
            _, self._files = self._parse_overrides_and_create_caching_repo(name, typed)
        return self._files


def _is_value(item: Override, files: IConfigRepository) -> bool:
    """Whether an override sets a value, and chooses no group or file."""
    group = files.group_exists(item.key_or_group) and not isinstance(item.value(), dict)
    return not group and (not item.is_hydra_override() or item.key_or_group.startswith(TRIALS_OWN))


def _name_overrides(settings: DictConfig, parsed: Sequence[Override]) -> None:
    """Writes what a trial was composed from, where Hydra writes it."""
    task = [item for item in parsed if not item.is_hydra_override()]
    known, own = settings.hydra.overrides, settings.hydra.job
    shared = set(known.hydra)
    known.hydra += [
        item.input_line for item in parsed if item.is_hydra_override() and item.input_line not in shared
    ]
    known.task = [item.input_line for item in task]
    own.override_dirname = get_overrides_dirname(
        overrides=task,
        kv_sep=own.config.override_dirname.kv_sep,
        item_sep=own.config.override_dirname.item_sep,
        exclude_keys=own.config.override_dirname.exclude_keys,
    )
