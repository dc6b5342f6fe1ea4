"""The sweeper that Hydra finds: Hydra looks for sweepers in this namespace only.

It imports nothing of quantlab, which Hydra would import at every start: the config names the function that
sweeps.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="quantlab",
    node={
        "_target_": "hydra_plugins.quantlab_sweeper.QuantlabSweeper",
        "function": "quantlab.sweeping.sweeper.run_sweep",
    },
    provider="quantlab",
)


class QuantlabSweeper(Sweeper):
    """Runs a sweep's missing trials through any launcher, under one parent run."""

    def __init__(self, function: str) -> None:
        self._function = function

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        return get_method(self._function)(self._context, self._task, self._config, arguments)
