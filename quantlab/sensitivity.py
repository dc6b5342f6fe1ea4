"""``quantlab sensitivity``: how much each site's quantization matters, by four scores.

Noise (dB), the first-order effect on the loss and the divergence of the answers come from
``search.sensitivity_rows`` calibration rows, the loss of the metric from all evaluation rows: each of one
variable alone, the rest in 16 bits. Takes the settings of ``quantlab search``; writes scores.csv, scores.png
and correlations.csv.
"""

import math
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from quantlab.cli.catalogue import register
from quantlab.cli.errors import compact_errors
from quantlab.cli.hydra_command import hydra_command
from quantlab.cli.signals import end_on_sigterm
from quantlab.storage.memo import Memo

MEMO = Memo()
SHOWN = 10
CHANCE = 0.2  # of the variance of measured losses that may be chance in a ranking by them

register("search")


@hydra_command("sensitivity")
def main(settings: DictConfig) -> None:
    """Builds the components, scores, and prints the worst sites and how the scores agree with what was
    measured."""
    # Imported here, so that help and errors of the command line do not wait for torch.
    from hydra.utils import instantiate

    from quantlab.cli.console import plain_console
    from quantlab.machine.allocator import keep_freed_memory
    from quantlab.searching.search_config import SearchConfig
    from quantlab.searching.search_run import measure_sensitivity

    keep_freed_memory()
    console = plain_console()
    with compact_errors():
        config: SearchConfig = instantiate(settings)
        folder = Path(HydraConfig.get().runtime.output_dir)
        scores = measure_sensitivity(config, folder, MEMO)
    worst = scores.table.sort_values("kl", ascending=False).head(SHOWN)
    console.print(worst.to_string(index=False, float_format="{:.4g}".format))
    console.print(scores.correlations().to_string(index=False, float_format="{:.3g}".format))
    losses, errors = (scores.table[name].to_numpy() for name in (scores.measured, scores.measured_error))
    console.print(caution(losses, errors, rows=scores.rows[scores.measured] // (len(scores.table) + 1)))
    console.print(str(folder))


def caution(losses: np.ndarray, errors: np.ndarray, rows: int) -> str:
    """What the correlations are worth: the share of chance in how the measured losses, (N,) in points
    or percent, differ.

    ``errors`` (N,) are their standard errors on so many ``rows``; NaN where they are not known.
    """
    intervals = "intervals: 95 %, over the variables"
    if np.isnan(errors).any() or np.ptp(losses) == 0:
        unknown = (
            "the losses do not differ" if np.ptp(losses) == 0 else "this metric has no errors row by row"
        )
        return (
            f"{intervals}; how much of the measured losses is chance is not known: {unknown} ({rows:,} rows)"
        )
    chance, seen = float(np.mean(errors**2)), float(np.var(losses, ddof=1))
    if chance >= seen:
        return (
            f"{intervals}. Too few examples: on {rows:,} rows the measured losses differ no more than by "
            "chance, so these correlations say nothing; take more (evaluation.limit)"
        )
    needed = math.ceil(rows * (chance / CHANCE) * (1 - CHANCE) / (seen - chance))
    share = f"{chance / seen:.0%} of how the measured losses differ on {rows:,} rows is chance"
    if needed <= rows:
        return f"{intervals}; {share}"
    step = 10 ** max(len(str(needed)) - 2, 0)
    return (
        f"{intervals}. Too few examples: {share}, which draws the correlations towards 0; a ranking by them "
        f"needs about {math.ceil(needed / step) * step:,} rows, on which it is {CHANCE:.0%}"
    )


if __name__ == "__main__":
    end_on_sigterm()
    main()
