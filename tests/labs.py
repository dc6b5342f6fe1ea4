"""Runs trials on tiny models in this process, with settings composed as the command line composes them."""

from dataclasses import dataclass

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantlab.cli.conf_dir import CONF
from quantlab.storage.memo import Memo
from quantlab.sweeping.run_config import RunConfig
from quantlab.trial.result import TrialResult
from quantlab.trial.trial import run_trial


@dataclass(frozen=True)
class Lab:
    """Overrides that select a tiny model and its data."""

    overrides: tuple[str, ...]

    def config(self, *more: str) -> RunConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            config: RunConfig = instantiate(compose("config", [*self.overrides, *more]))
        return config

    def trial(self, *more: str, memo: Memo | None = None) -> TrialResult:
        return run_trial(self.config(*more), memo or Memo())
