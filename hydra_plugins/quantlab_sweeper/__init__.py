"""Hydra looks for sweepers in this namespace only. What the sweeper does is in quantlab.sweeping.sweeper."""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="quantlab",
    node={"_target_": "hydra_plugins.quantlab_sweeper.QuantlabSweeper"},
    provider="quantlab",
)


class QuantlabSweeper(Sweeper):
    """Runs a sweep's missing trials through any launcher, under one parent run."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from quantlab.sweeping.sweeper import run_sweep  # only now: Hydra imports every plugin at every start

        return run_sweep(self._context, self._task, self._config, arguments)
