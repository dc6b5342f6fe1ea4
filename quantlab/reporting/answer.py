"""What to deploy, and what failed worst: the first two sentences of the report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.reporting.comparing import NO_FILE, Row
from quantlab.reporting.reading import Trial

NO_ANSWERS = ("constant_prediction", "majority_accuracy", "majority_accuracy_fp32")  # alarms: it answers nothing
MB = 1e6
MAX_DROP = 0.5  # points
SAME_SIZE = 1.01  # ranges and group indices make trials of equal bits differ by less


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """``deploy`` and ``worst`` are sentences; the trials they are about may be None."""

    chosen: Row | None
    within: bool  # whether ``chosen`` is within the limit, or only the closest to it
    deploy: str
    failed: Row | None
    worst: str


def answer(rows: Sequence[Row], metric: str, limit: float) -> Answer:
    """The smallest quantized trial, then fastest, then best, that loses at most ``limit`` points; else the closest."""
    quantized = [row for row in rows if not row.trial.reference and math.isfinite(row.difference)]
    sound = [row for row in quantized if not _unsound(row)]
    within = [row for row in sound if _loss(row) <= limit + 1e-9]
    failed = min(quantized, key=lambda row: row.difference, default=None)
    failed = failed if failed is not None and failed.difference < 0 else None
    if within:
        least = min(row.trial.number_of("size_bytes") for row in within)
        small = [row for row in within if row.trial.number_of("size_bytes") <= SAME_SIZE * least]
        chosen: Row | None = min(small, key=lambda row: (-_speed(row.trial)[0], _loss(row)))
        deploy = _recommendation(chosen, metric, limit) if chosen else ""
    else:
        chosen = min(sound, key=_loss, default=None)
        deploy = _closest(chosen, metric, limit, any_quantized=bool(quantized))
    return Answer(chosen=chosen, within=bool(within), deploy=deploy, failed=failed, worst=_failure(failed, metric))


def _unsound(row: Row) -> bool:
    """Whether its answers are none: one class, no better than one class, or not numbers."""
    names = {alarm["name"] for alarm in row.trial.alarms}
    answers = row.trial.answers
    return bool(names & set(NO_ANSWERS)) or (answers is not None and answers.missing > 0)


def _loss(row: Row) -> float:
    """Points lost against FP32."""
    return -100 * row.difference


def _speed(trial: Trial) -> tuple[float, float, float, str]:
    """Times FP32's speed, its interval, and where it was measured; zeros where only a simulation was timed."""
    for prefix, where in (("deployed_", trial.tags.get("runtime", "")), ("", "torch")):
        arithmetic = trial.tags.get("deployed_arithmetic" if prefix else "engine")
        value = trial.number_of(f"{prefix}speedup_vs_fp32")
        if math.isfinite(value) and arithmetic not in ("simulated", "float", None):
            low, high = (trial.number_of(f"{prefix}speedup_ci95_{end}") for end in ("low", "high"))
            return value, low, high, f"{where}, {arithmetic}"
    return 0.0, 0.0, 0.0, ""


def signed(value: float) -> str:
    """``+0.40`` or ``−0.40``, with a real minus."""
    return f"{value:+z.2f}".replace("-", "−")


def points(value: float) -> str:
    """``0.40 points``."""
    return f"{abs(value):.2f} points"


def _change(row: Row, metric: str) -> str:
    """``loses 0.40 points of accuracy (95 % interval -0.26 to 1.06)``."""
    comparison, loss = row.comparison, _loss(row)
    verb = "loses" if loss > 0 else "gains" if loss < 0 else "loses or gains"
    sign = 1 if loss < 0 else -1
    ends = sorted(100 * sign * end for end in (comparison.low, comparison.high)) if comparison else [math.nan] * 2
    interval = "" if math.isnan(ends[0]) else f" (95 % interval {signed(ends[0])} to {signed(ends[1])})"
    return f"{verb} {points(loss)} of {metric.replace('_', ' ')}{interval}"


def _recommendation(row: Row, metric: str, limit: float) -> str:
    trial, comparison = row.trial, row.comparison
    size, whole = trial.number_of("size_bytes"), trial.number_of("size_fp32_bytes")
    assert comparison is not None
    sure = math.isfinite(comparison.low) and -100 * comparison.low <= limit + 1e-9
    bound = "with its whole interval" if sure else "by its point estimate, though not with its whole interval"
    words = f"Deploy {trial.name}: it {_change(row, metric)}, within the limit of {limit:g} points {bound}, "
    words += f"and takes {size / MB:.1f} MB, {whole / size:.1f} times less than FP32"
    return f"{words}{_speed_words(trial)}{_caveats(row)}."


def _speed_words(trial: Trial) -> str:
    value, low, high, where = _speed(trial)
    if value:
        return f"; it runs at {value:.2f} times FP32's speed ({low:.2f} to {high:.2f}; {where})"
    timed = math.isfinite(trial.number_of("latency_p50_ms"))
    return "; its speed was only simulated, which says nothing" if timed else "; its speed was not measured"


def _caveats(row: Row) -> str:
    names = list(dict.fromkeys(alarm["name"] for alarm in row.trial.alarms))
    untested = f"; {NO_FILE}, so nothing was tested" if row.verdict == NO_FILE else ""
    return untested + (f"; look at its alarms first: {', '.join(names)}" if names else "")


def _closest(row: Row | None, metric: str, limit: float, any_quantized: bool) -> str:
    if not any_quantized:
        return "Nothing to deploy: no quantized trial finished."
    if row is None:
        return "Deploy none of these: no quantized trial answers better than always naming one class."
    return (
        f"Deploy none of these: no quantized trial stays within {limit:g} points of FP32; the closest, "
        f"{row.trial.name}, {_change(row, metric)}."
    )


def _failure(row: Row | None, metric: str) -> str:
    if row is None:
        return "No quantized trial is below FP32."
    alarms = row.trial.alarms
    raised = f"its alarm {alarms[0]['name']} says: {alarms[0]['message']}" if alarms else "it raised no alarm"
    return f"{row.trial.name} failed worst: it {_change(row, metric)}; {raised}."
