"""What Hydra is told of quantlab: its sweeper, and the sweeps that ``+sweeps=<name>`` finds from any
folder."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from hydra_plugins.quantlab_sweeper import QuantlabSweeper
from quantlab.cli.conf_dir import CONF

SWEEPS = Path(CONF).parent / "sweeps"
FOUND = Path("conf") / "method" / "found"  # what searches found in this working folder


def files(kind: str = "sweep") -> list[Path]:
    """The files of ``sweeps/`` that describe a ``sweep`` of trials, or a ``search``."""
    return sorted(path for path in SWEEPS.glob("*.yaml") if kind in OmegaConf.load(path))


def register(kind: str = "sweep") -> None:
    """Makes :func:`files` overlays of the whole config, and what searches found here methods.

    ``--config-dir`` adds a folder of one's own.
    """
    Plugins.instance().register(QuantlabSweeper)  # Hydra's own search does not see into editable installs
    store = ConfigStore.instance().store
    for path in files(kind):
        store(
            group="sweeps", name=path.stem, node=OmegaConf.load(path), package="_global_", provider="quantlab"
        )
    for path in sorted(FOUND.glob("*.yaml")):
        store(
            group="method/found",
            name=path.stem,
            node=OmegaConf.load(path),
            package="method",
            provider="quantlab",
        )
