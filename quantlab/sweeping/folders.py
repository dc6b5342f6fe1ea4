"""The folders of a command: the one that it was typed in, and one of its own for what it writes."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from quantlab.results.store import locked_folder
from quantlab.trial.result import RESULT


class OwnFolder(Callback):
    """Keeps the run's folder for this run alone, from before Hydra writes into it until the run ends.

    Hydra calls it first of all, and turns its exceptions into warnings: it ends the program with one line
    instead.
    """

    _kept: ExitStack | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the program where the folder holds a trial or another process is running one there."""
        _require_working_folder(config)
        with hydra_config(config):
            folder = Path(config.hydra.run.dir).absolute()
        self._kept = ExitStack()
        try:
            self._kept.enter_context(
                locked_folder(folder, f"a trial with hydra.run.dir={folder}", wait=False)
            )
        except OSError as error:
            sys.exit(str(error))
        if (folder / RESULT).exists():
            self.on_run_end(config)
            sys.exit(f"{folder} holds a trial already, which is kept: give another hydra.run.dir, or none")

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        """Lets other runs have the folder."""
        if self._kept is not None:
            self._kept.close()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the program where trials would look for relative paths in folders of their own."""
        _require_working_folder(config)


def _require_working_folder(config: DictConfig) -> None:
    if config.hydra.job.chdir:
        sys.exit(
            "hydra.job.chdir=true would take relative paths (model.path, task.data_dir) from another "
            "folder than the one the command was typed in: leave it out; hydra.run.dir or hydra.sweep.dir "
            "say where results go"
        )


@contextmanager
def hydra_config(config: DictConfig) -> Iterator[None]:
    """Lets ``${hydra:...}`` speak of this config meanwhile; what it spoke of before comes back."""
    kept = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = kept
