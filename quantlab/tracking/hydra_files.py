"""Hydra's own files of a job, in which it keeps every override as it was typed."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from quantlab.cli.secrets import clean


class WithoutPasswords(Callback):
    """Takes the passwords of URIs out of them; ``hydra.callbacks`` of conf/config.yaml names it."""

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Cleans what Hydra has written by then, ``.hydra/*.yaml``."""
        if config.hydra.output_subdir is not None:
            clean(Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Cleans the ``multirun.yaml`` of Hydra's own sweeper."""
        clean(Path(config.hydra.sweep.dir))
