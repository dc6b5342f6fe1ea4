"""``python -m quantlab.demo [overrides]``: the paper's table on one model and task, and the way to the MLflow UI.

Overrides such as ``model=hf model.path=... task=qnli`` apply to every row of ``sweeps/paper_table.yaml``.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from quantlab.allocator import keep_freed_memory
from quantlab.conf_dir import CONF
from quantlab.config import RunConfig
from quantlab.memo import Memo
from quantlab.placement.plan import QuantPlan
from quantlab.result import TrialResult, check_writable
from quantlab.trial import run_trial

LOG_WIDTH = 120  # columns, where the output goes to a file
TABLE = Path(__file__).parents[1] / "sweeps" / "paper_table.yaml"


@dataclass(frozen=True)
class Row:
    """One trial of the table."""

    name: str
    overrides: list[str]


def main(arguments: Sequence[str]) -> None:
    """Runs all rows in this process, so that model, data, sketches and FP32 answers are computed once."""
    keep_freed_memory()
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH)
    sweep = OmegaConf.load(TABLE)
    rows = [Row(row.name, [*sweep.common, *row.overrides]) for row in sweep.rows]
    folder = Path.cwd() / "outputs" / f"demo-{datetime.now():%Y-%m-%d-%H-%M-%S}"
    uri = f"sqlite:///{Path.cwd()}/mlflow.db"
    table, memo, start = result_table(), Memo(), time.perf_counter()
    with initialize_config_dir(CONF, version_base="1.3"):
        for number, row in enumerate(rows):
            console.print(f"[{number + 1}/{len(rows)}] {row.name}")
            config: RunConfig = instantiate(compose("config", [f"tracking.uri={uri}", *row.overrides, *arguments]))
            table.add_row(row.name, *cells(run(config, row.name, folder / str(number), memo)))
    console.print(table)
    console.print(f"{len(rows)} trials in {time.perf_counter() - start:.0f} s, in {folder}", soft_wrap=True)
    console.print(f"compare them: mlflow ui --backend-store-uri {uri}", soft_wrap=True)


def run(config: RunConfig, name: str, folder: Path, memo: Memo) -> TrialResult:
    """One recorded trial."""
    check_writable(folder)
    with config.tracking.start(name, config.params()) as record:
        result = run_trial(config, memo)
        record.log(result, result.save(folder))
    return result


def result_table() -> Table:
    """The table's columns."""
    title = "The rows of arXiv 2603.04308, engine: simulated (FP32 arithmetic: its latency is not INT8's)"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("\nmethod")
    for name in ("accuracy\n%", "drop in points\n(95 % interval)", "same\n%", "p50/p95\nms", "memory\nMB", "size\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("\nalarms", overflow="fold")
    return table


def cells(result: TrialResult) -> list[str]:
    """A trial's row."""
    numbers = {name: value for name, value in result.metrics.items() if isinstance(value, float)}
    unchanged = result.plan == QuantPlan()
    drop, low, high = (100 * numbers[f"accuracy_drop{part}"] for part in ("", "_ci95_low", "_ci95_high"))
    timed = "latency_p50_ms" in numbers
    return [
        f"{100 * numbers['accuracy']:.2f}",
        "" if unchanged else f"{drop:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{100 * numbers['agreement_fp32']:.1f}",
        f"{numbers['latency_p50_ms']:.0f}/{numbers['latency_p95_ms']:.0f}" if timed else "",
        f"{numbers['peak_memory_mb']:.0f}" if timed else "",
        f"{numbers['size_bytes'] / 1e6:.1f}",
        result.tags["alarms"],
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
