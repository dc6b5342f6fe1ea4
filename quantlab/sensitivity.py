"""``python -m quantlab.sensitivity``: how much each site's quantization matters, by four scores.

Noise (dB), the first-order effect on the loss and the divergence of the answers come from ``search.sensitivity_rows``
calibration rows, the loss of accuracy from all evaluation rows: each of one variable alone, the rest in 16 bits. Takes
the settings of ``quantlab.search``; writes scores.csv, scores.png and correlations.csv.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from quantlab.allocator import keep_freed_memory
from quantlab.compact import compact_errors
from quantlab.conf_dir import CONF
from quantlab.console import plain_console
from quantlab.interrupts import end_on_sigterm
from quantlab.memo import Memo
from quantlab.searching.running import measure_sensitivity
from quantlab.searching.spec import SearchConfig
from quantlab.sweeping.catalogue import register

MEMO = Memo()
SHOWN = 10

register("search")


@hydra.main(version_base="1.3", config_path=CONF, config_name="search")
def main(settings: DictConfig) -> None:
    """Builds the components, scores, and prints the worst sites and how the scores agree with what was measured."""
    keep_freed_memory()
    console = plain_console()
    with compact_errors():
        config: SearchConfig = instantiate(settings)
        folder = Path(HydraConfig.get().runtime.output_dir)
        scores = measure_sensitivity(config, folder, MEMO)
    worst = scores.table.sort_values("kl", ascending=False).head(SHOWN)
    console.print(worst.to_string(index=False, float_format="{:.4g}".format))
    console.print(scores.correlations().to_string(index=False, float_format="{:.3g}".format))
    console.print(str(folder))


if __name__ == "__main__":
    end_on_sigterm()
    main()
