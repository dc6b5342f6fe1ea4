"""A trial on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from quantlab.result import RESULT, TrialResult
from quantlab.sweeping.spec import Member


def print_member(member: Member, summary: Mapping[str, Any]) -> None:
    """A sweep's trial in one line: its place, its name, its answer."""
    metrics = summary["metrics"]
    primary = next(name.removesuffix("_drop") for name in metrics if name.endswith("_drop"))
    drop, low, high = (metrics[f"{primary}_drop{part}"] for part in ("", "_ci95_low", "_ci95_high"))
    alarms = ", ".join(dict.fromkeys(alarm["name"] for alarm in summary["alarms"]))
    Console(highlight=False, soft_wrap=True).print(
        f"\\[{member.number}/{member.total}] {escape(member.name)}: {primary} {metrics[primary]:.4f}, "
        f"drop {drop:+.4f} ({low:+.4f} to {high:+.4f}) [bold red]{alarms}[/]"
    )


def print_summary(result: TrialResult, folder: Path) -> None:
    """The answer first, then the alarms, then where the rest is."""
    console = Console(highlight=False)
    metrics = {name: value for name, value in result.metrics.items() if isinstance(value, float)}
    primary = next(name.removesuffix("_drop") for name in metrics if name.endswith("_drop"))
    drop, low, high = (metrics[f"{primary}_drop{part}"] for part in ("", "_ci95_low", "_ci95_high"))
    console.print(
        f"{primary} {metrics[primary]:.4f}, FP32 {metrics[f'{primary}_fp32']:.4f}, "
        f"drop {drop:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
    )
    if "latency_p50_ms" in metrics:
        console.print(f"p50 {metrics['latency_p50_ms']:.1f} ms ({result.tags['engine']}: not an integer latency)")
    for alarm in result.alarms:
        console.print(f"[bold red]alarm[/] {alarm.name}: {alarm.message}")
    console.print(str(folder / RESULT), soft_wrap=True)
