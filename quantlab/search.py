"""``quantlab search +sweeps=mixed_precision``: the cheapest precisions of activations that keep the answers.

The same command goes on with a study that was killed, interrupted or finished. More workers: the same command
in another terminal or on another host, or ``-m search.worker=1,2,3 launcher=joblib``.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from quantlab.cli.catalogue import register
from quantlab.cli.errors import compact_errors
from quantlab.cli.hydra_command import hydra_command
from quantlab.cli.signals import end_on_sigterm
from quantlab.storage.memo import Memo

MEMO = Memo()

register("search")


@hydra_command("search")
def main(settings: DictConfig) -> float | None:
    """Builds the components and works on the study; returns the best cost."""
    # Imported here, so that help and errors of the command line do not wait for torch.
    from hydra.utils import instantiate

    from quantlab.machine.allocator import keep_freed_memory
    from quantlab.searching.search_config import SearchConfig
    from quantlab.searching.search_run import run_search

    keep_freed_memory()
    with compact_errors():
        config: SearchConfig = instantiate(settings)
        folder = Path(HydraConfig.get().sweep.dir).absolute() / "searches" / config.search.name
        return run_search(config, folder, MEMO)


if __name__ == "__main__":
    end_on_sigterm()
    main()
