"""A trial on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from quantlab.result import RESULT, Metric, TrialResult
from quantlab.sweeping.spec import Member


def answer(metrics: Mapping[str, Metric]) -> str:
    """The primary metric, FP32's and the drop; a correlation that does not exist is ``none``."""
    primary = next(name.removesuffix("_drop") for name in metrics if name.endswith("_drop"))
    names = (primary, *(f"{primary}_{part}" for part in ("fp32", "drop", "drop_ci95_low", "drop_ci95_high")))
    value, fp32, drop, low, high = (
        f"{number:.4f}" if isinstance(number := metrics[name], float) else "none" for name in names
    )
    return f"{primary} {value}, FP32 {fp32}, drop {drop} (95 % interval {low} to {high})"


def print_member(member: Member, summary: Mapping[str, Any]) -> None:
    """A sweep's trial in one line: its place, its name, its answer."""
    alarms = ", ".join(dict.fromkeys(alarm["name"] for alarm in summary["alarms"]))
    Console(highlight=False, soft_wrap=True).print(
        f"\\[{member.number}/{member.total}] {escape(member.name)}: {answer(summary['metrics'])} [bold red]{alarms}[/]"
    )


def print_summary(result: TrialResult, folder: Path) -> None:
    """The answer first, then the alarms, then where the rest is."""
    console = Console(highlight=False)
    console.print(answer(result.metrics))
    if "latency_p50_ms" in result.metrics:
        console.print(
            f"p50 {result.metrics['latency_p50_ms']:.1f} ms ({result.tags['engine']}: not an integer latency)"
        )
    for alarm in result.alarms:
        console.print(f"[bold red]alarm[/] {alarm.name}: {alarm.message}")
    console.print(str(folder / RESULT), soft_wrap=True)
