"""``quantlab outliers``: why a quantization fails.

Which layers, channels and tokens have outliers, which sites' quantization changes the answers, which weights
make them, and what protecting those sites or clipping those weights gains. Takes a trial's settings,
``search.*`` for the sites, and ``outliers.*``; writes tables into ``multirun/outliers``, where
``quantlab report`` finds them.
"""

import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from quantlab.cli.catalogue import register
from quantlab.cli.errors import compact_errors
from quantlab.cli.hydra_command import hydra_command
from quantlab.cli.secrets import without_password
from quantlab.cli.signals import end_on_sigterm
from quantlab.storage.memo import Memo

MEMO = Memo()

register("search")


@hydra_command("outliers")
def main(settings: DictConfig) -> None:
    """Builds the components and analyses."""
    # Imported here, so that help and errors of the command line do not wait for torch.
    from hydra.utils import instantiate

    from quantlab.analysis.analysis_run import analyse_outliers
    from quantlab.analysis.outliers_config import OutliersConfig
    from quantlab.machine.allocator import keep_freed_memory

    keep_freed_memory()
    with compact_errors():
        config: OutliersConfig = instantiate(settings)
        composed = HydraConfig.get()
        command = without_password(
            shlex.join(["python", "-m", "quantlab.outliers", *composed.overrides.task])
        )
        analyse_outliers(config, Path(composed.sweep.dir).absolute() / "outliers", command, MEMO)


if __name__ == "__main__":
    end_on_sigterm()
    main()
