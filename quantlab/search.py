"""``python -m quantlab.search +sweeps=mixed_precision``: the cheapest precisions of activations that keep the
answers.

The study goes on where it was left: killed, interrupted or finished. More workers: the same command in
another terminal or on another host, or ``-m search.worker=1,2,3 launcher=joblib``.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.cli.errors import compact_errors
from quantlab.cli.signals import end_on_sigterm
from quantlab.machine.allocator import keep_freed_memory
from quantlab.searching.search_config import SearchConfig
from quantlab.searching.search_run import run_search
from quantlab.storage.memo import Memo

MEMO = Memo()

register("search")


@hydra.main(version_base="1.3", config_path=CONF, config_name="search")
def main(settings: DictConfig) -> float | None:
    """Builds the components and works on the study; returns the best cost."""
    keep_freed_memory()
    with compact_errors():
        config: SearchConfig = instantiate(settings)
        return run_search(
            config, Path(HydraConfig.get().sweep.dir).absolute() / "searches" / config.search.name, MEMO
        )


if __name__ == "__main__":
    end_on_sigterm()
    main()
