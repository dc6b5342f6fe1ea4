"""``quantlab run``: one trial; with ``-m``, a sweep of them."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from quantlab.cli.catalogue import register
from quantlab.cli.errors import compact_errors
from quantlab.cli.hydra_command import hydra_command
from quantlab.cli.signals import end_on_sigterm
from quantlab.storage.memo import Memo

MEMO = Memo()  # shared by the trials that one process runs

register()


@hydra_command("run")
def main(settings: DictConfig) -> Any:
    """Builds the components and runs the trial. As a member of a sweep, returns its ``result.json``."""
    # Imported here, so that help and errors of the command line do not wait for torch.
    from hydra.utils import instantiate

    from quantlab.machine.allocator import keep_freed_memory
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
        result, page = run_single(
            config, trial_run_name(composed.runtime.choices, composed.overrides.task), folder, MEMO
        )
        return print_summary(result, folder, page)


if __name__ == "__main__":
    end_on_sigterm()
    main()
