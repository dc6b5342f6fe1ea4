"""What Hydra is told of quantlab: its sweeper, and the sweeps that ``+sweeps=<name>`` finds from any folder."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from hydra_plugins.quantlab_sweeper import QuantlabSweeper
from quantlab.conf_dir import CONF

SWEEPS = Path(CONF).parent / "sweeps"


def register() -> None:
    """Makes every file of ``sweeps/`` an overlay of the whole config. ``--config-dir`` adds a folder of one's own."""
    Plugins.instance().register(QuantlabSweeper)  # Hydra's own search does not see into editable installs
    for path in sorted(SWEEPS.glob("*.yaml")):
        ConfigStore.instance().store(
            group="sweeps", name=path.stem, node=OmegaConf.load(path), package="_global_", provider="quantlab"
        )
