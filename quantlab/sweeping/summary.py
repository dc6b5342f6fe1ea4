"""A trial on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from quantlab.cli.console import alarm_line, plain_console, shortened
from quantlab.sweeping.sweep import Member
from quantlab.tasks.scores import SCORES, loss_of
from quantlab.trial.result import RESULT, Metric, TrialResult

SAME = "agreement_deployed"
NAME = 200  # characters of a trial's name on the terminal


def answer_line(metrics: Mapping[str, Metric]) -> str:
    """The primary metric, FP32's and the drop, or the ratio of the two; a correlation that does not exist is
    ``none``."""
    primary = loss_of(metrics)[0]
    kind = "ratio" if SCORES[primary].relative else "drop"
    names = (
        primary,
        *(f"{primary}_{part}" for part in ("fp32", kind, f"{kind}_ci95_low", f"{kind}_ci95_high")),
    )
    value, fp32, lost, low, high = (
        f"{number:.4f}" if isinstance(number := metrics[name], float) else "none" for name in names
    )
    said = f"{primary} {value}, FP32 {fp32}, {kind} {lost} (95 % interval {low} to {high})"
    return f"{said}{_rows_answered(metrics)}"


def _rows_answered(metrics: Mapping[str, Metric]) -> str:
    """``, keeps: 448 of 5,463 rows answered``, of a trial that stops when its loss is decided; else ""."""
    answered, selected = metrics.get("rows_answered"), metrics.get("rows_selected")
    if not isinstance(answered, float) or not isinstance(selected, float):
        return ""
    word = "keeps" if metrics["keeps"] else "loses"
    return f", {word}: {answered:,.0f} of {selected:,.0f} rows answered"


def deployed_line(metrics: Mapping[str, Metric]) -> str:
    """The primary metric of the deployed model; empty where nothing was deployed."""
    name = next((name for name in metrics if name.endswith("_deployed") and name != SAME), "")
    value, same = metrics.get(name), metrics.get(SAME)
    if not isinstance(value, float):
        return ""
    share = f", {100 * same:.1f} % of the answers as here" if isinstance(same, float) else ""
    return f"deployed: {name.removesuffix('_deployed')} {value:.4f}{share}"


def latencies(metrics: Mapping[str, Metric], tags: Mapping[str, str]) -> list[str]:
    """What was timed, in which arithmetic, and its ratio to FP32 where it has one."""
    timed = {"": f"torch, {tags['engine']}"}
    if "runtime" in tags:
        timed["deployed_"] = f"{tags['runtime']}, {tags['deployed_arithmetic']}"
    return [
        f"p50 {metrics[f'{prefix}latency_p50_ms']:.1f} ms ({title}){_speedup(metrics, prefix)}"
        for prefix, title in timed.items()
        if f"{prefix}latency_p50_ms" in metrics
    ]


def _speedup(metrics: Mapping[str, Metric], prefix: str) -> str:
    names = ("vs_fp32", "ci95_low", "ci95_high")
    if f"{prefix}speedup_vs_fp32" not in metrics:
        return ""
    value, low, high = (metrics[f"{prefix}speedup_{name}"] for name in names)
    return f", {value:.2f} times as fast as FP32 in torch (95 % interval {low:.2f} to {high:.2f})"


def print_member(member: Member, summary: Mapping[str, Any]) -> None:
    """A sweep's trial in one line: its place, its name, its answer."""
    alarms = ", ".join(dict.fromkeys(alarm["name"] for alarm in summary["alarms"]))
    said = (
        f"[{member.number}/{member.total}] {shortened(member.name, NAME)}: {answer_line(summary['metrics'])}"
    )
    plain_console().print(Text.assemble(said, (f" {alarms}" if alarms else "", "bold red")))


def print_summary(result: TrialResult, folder: Path, page: Sequence[str] = ()) -> None:
    """The answer first, then the alarms, then where the rest is: the file and the tracker's ``page``."""
    console = plain_console()
    console.print(answer_line(result.metrics))
    if deployed := deployed_line(result.metrics):
        console.print(deployed)
    for line in latencies(result.metrics, result.tags):
        console.print(line)
    for alarm in result.alarms:
        console.print(alarm_line(alarm.name, alarm.message))
    print_places(console, {"result": [str(folder / RESULT)], "MLflow": page})


def print_places(console: Console, places: Mapping[str, Sequence[str]]) -> None:
    """Where to look further: a place's name, and its lines below each other. Places without lines are left
    out."""
    indent = 2 + max(map(len, places))
    for name, lines in places.items():
        for title, line in zip([f"{name}:", *[""] * len(lines)], lines, strict=False):
            console.print(f"{title:<{indent}}{line}")
