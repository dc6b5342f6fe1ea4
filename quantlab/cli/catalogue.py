"""Registers quantlab with Hydra: its sweeper, the sweeps, and the methods that searches have found."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from hydra_plugins.quantlab_sweeper import QuantlabSweeper
from quantlab.cli.commands import sweep_files
from quantlab.cli.conf_dir import FOUND_METHODS


def register(kind: str = "sweep") -> None:
    """Makes the files of ``sweeps/`` overlays of the whole config (``+sweeps=peg_k``), and the files of
    ``conf/method/found`` in the working folder methods (``method=found/mixed_precision``).

    ``--config-dir`` adds a folder of one's own.
    """
    Plugins.instance().register(QuantlabSweeper)  # Hydra's own search does not see into editable installs
    for path in sweep_files(kind):
        _store("sweeps", path, package="_global_")
    for path in sorted(FOUND_METHODS.glob("*.yaml")):
        _store("method/found", path, package="method")


def _store(group: str, path: Path, package: str) -> None:
    ConfigStore.instance().store(
        group=group, name=path.stem, node=OmegaConf.load(path), package=package, provider="quantlab"
    )
