"""Runs trials on tiny models in this process, with settings composed as the command line composes them."""

from dataclasses import dataclass
from pathlib import Path

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


def gpu_lab(model: Path, data: Path) -> Lab:
    """Trials of 16 rows, without profile and tracker."""
    return Lab(
        (
            "model=hf",
            f"model.path={model}",
            "task=qnli",
            f"task.data_dir={data}",
            "task.max_length=32",
            "evaluation.limit=16",
            "calibration.samples=8",
            "profile=off",
            "tracking=off",
        )
    )
