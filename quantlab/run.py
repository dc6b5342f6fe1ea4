"""``python -m quantlab.run``: one trial; with ``-m``, a sweep of them."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.cli.errors import compact_errors
from quantlab.cli.signals import end_on_sigterm
from quantlab.machine.allocator import keep_freed_memory
from quantlab.storage.memo import Memo

MEMO = Memo()  # shared by the trials that one process runs

register()


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(settings: DictConfig) -> Any:
    """Builds the components and runs the trial; as a member of a sweep, returns what it found."""
    # Only now: what Hydra finds wrong with an override is told without the seconds that these take.
    from hydra.utils import instantiate

    from quantlab.sweeping.member import run_member, run_single
    from quantlab.sweeping.run_config import RunConfig, trial_run_name
    from quantlab.sweeping.summary import print_member, print_summary

    keep_freed_memory()
    with compact_errors():
        config: RunConfig = instantiate(settings)
        composed = HydraConfig.get()
        folder = Path(composed.runtime.output_dir)
        if config.sweep.member:
            summary = run_member(config, config.sweep.member, folder, MEMO)
            print_member(config.sweep.member, summary)
            return summary
        result = run_single(
            config, trial_run_name(composed.runtime.choices, composed.overrides.task), folder, MEMO
        )
        return print_summary(result, folder)


if __name__ == "__main__":
    end_on_sigterm()
    main()
