"""``python -m quantlab.run``: one trial, or with ``-m`` a multirun of them."""

import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from quantlab.allocator import keep_freed_memory
from quantlab.compact import compact_errors
from quantlab.conf_dir import CONF
from quantlab.config import RunConfig, run_name
from quantlab.memo import Memo
from quantlab.result import check_writable
from quantlab.summary import print_summary
from quantlab.trial import run_trial

MEMO = Memo()  # shared by the trials of one multirun


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(settings: DictConfig) -> None:
    """Builds the components, runs the trial, records it."""
    keep_freed_memory()
    with compact_errors():
        config: RunConfig = instantiate(settings)
        composed = HydraConfig.get()
        folder = Path(composed.runtime.output_dir)
        check_writable(folder)
        name = run_name(composed.runtime.choices, composed.overrides.task)
        with config.tracking.start(name, config.params()) as run:
            result = run_trial(config, MEMO)
            run.log(result, result.save(folder))
        print_summary(result, folder)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the run is closed as failed
    main()
