"""The first two sentences of the report: what to deploy, and what failed worst."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantlab.evaluation.significance import Comparison
from quantlab.reporting.comparing import NO_FILE, ComparedTrial, study_measuring_rows
from quantlab.results.answers import measured_where
from quantlab.results.reading import Study, TrialRecord

NO_ANSWERS = (
    "constant_prediction",
    "majority_accuracy",
    "majority_accuracy_fp32",
)  # alarms: it answers nothing
MB = 1e6
SLACK = 1e-9  # of sums in floating point
SAME_SIZE = 1.01  # ranges and group indices make trials of equal bits differ by less


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommendation:
    """The sentences ``deploy`` and ``worst``, and the trials that they are about."""

    chosen: ComparedTrial | None
    within: bool  # whether ``chosen`` is within the limit, or only the closest to it
    deploy: str
    failed: ComparedTrial | None
    worst: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A quantized trial, judged on the rows that choose and measured on the held-out rows."""

    row: ComparedTrial
    metric: str
    held_out: np.ndarray | None  # bool (N,); None where the same rows choose and measure
    among: int  # candidates

    @cached_property
    def judged(self) -> float:
        """100 times the loss against FP32 on the rows that choose: points, or percent."""
        return _loss(self._compared(None if self.held_out is None else ~self.held_out))

    @cached_property
    def measured(self) -> Comparison:
        """The trial less FP32 on the held-out rows, uncorrected: one trial alone is measured."""
        return self._compared(self.held_out)

    @property
    def rows(self) -> str:
        """Which rows chose and measured it, in words."""
        answers = self.row.trial.answers
        if self.row.trial.partial:
            return f"estimated from the {self.row.trial.number_of('rows_answered'):,.0f} rows that decided it"
        return measured_where(self.held_out, len(answers.labels) if answers else 0, self.among)

    def within(self, loss: float, limit: float) -> bool:
        """Whether a loss of the trial's is within the limit. A trial that stopped when that was decided has
        its own limit, and its verdict holds for all rows."""
        trial = self.row.trial
        return trial.number_of("keeps") == 1 if trial.verdict else loss <= limit + SLACK

    def _compared(self, rows: np.ndarray | None) -> Comparison:
        answers = self.row.trial.answers
        if answers is None or self.row.trial.partial:
            assert self.row.comparison is not None
            return self.row.comparison
        return (answers if rows is None else answers.where(rows)).against_fp32(self.metric)


def recommend(study: Study, rows: Sequence[ComparedTrial], limit: float) -> Recommendation:
    """Recommends the smallest quantized trial that loses at most ``limit``, else names the closest.

    Where trials stopped when their loss was decided it is the smallest that keeps. Of equal sizes the fastest
    wins, then the best. This trial and the one that failed worst are chosen on the rows that choose, and
    measured on the held-out rows.
    """
    metric = study.primary
    quantized = [row for row in rows if not row.trial.reference and math.isfinite(row.difference)]
    mask = study_measuring_rows(study, quantized)
    candidates = [Candidate(row=row, metric=metric, held_out=mask, among=len(quantized)) for row in quantized]
    sound = [one for one in candidates if not _unsound(one.row)]
    within = [one for one in sound if one.within(one.judged, limit)]
    failed = max(candidates, key=lambda one: one.judged, default=None)
    failed = failed if failed is not None and failed.judged > 0 else None
    chosen: Candidate | None
    if within:
        least = min(one.row.trial.number_of("size_bytes") for one in within)
        small = [one for one in within if one.row.trial.number_of("size_bytes") <= SAME_SIZE * least]
        chosen = min(small, key=lambda one: (-_speed(one.row.trial)[0], one.judged))
        deploy = _recommendation(chosen, limit)
    else:
        chosen = min(sound, key=lambda one: one.judged, default=None)
        deploy = _closest(chosen, limit, any_quantized=bool(quantized))
    borne_out = chosen is not None and chosen.within(_loss(chosen.measured), limit)
    return Recommendation(
        chosen=None if chosen is None else chosen.row,
        within=bool(within) and borne_out,
        deploy=deploy,
        failed=None if failed is None else failed.row,
        worst=_failure(failed),
    )


def _unsound(row: ComparedTrial) -> bool:
    """Whether the model answers one class only, does no better than that, or returns NaN."""
    names = {alarm["name"] for alarm in row.trial.alarms}
    answers = row.trial.answers
    return bool(names & set(NO_ANSWERS)) or (answers is not None and answers.missing > 0)


def _loss(comparison: Comparison) -> float:
    """100 times the loss against FP32: points, or percent."""
    return -100 * comparison.difference


def _speed(trial: TrialRecord) -> tuple[float, float, float, str]:
    """The speed-up, the ends of its interval and its runtime; zeros where no real one was measured."""
    for prefix, where in (("deployed_", trial.tags.get("runtime", "")), ("", "torch")):
        arithmetic = trial.tags.get("deployed_arithmetic" if prefix else "engine")
        value = trial.number_of(f"{prefix}speedup_vs_fp32")
        if math.isfinite(value) and arithmetic not in ("simulated", "float", None):
            low, high = (trial.number_of(f"{prefix}speedup_ci95_{end}") for end in ("low", "high"))
            return value, low, high, f"{where}, {arithmetic}"
    return 0.0, 0.0, 0.0, ""


def signed(value: float) -> str:
    """``+0.40`` or ``−0.40``, with a typographic minus."""
    return f"{value:+z.2f}".replace("-", "−")


def _change(one: Candidate) -> str:
    """``loses 0.40 points of accuracy (95 % interval -0.26 to 1.06), measured on 800 rows, chosen on 800
    others``."""
    comparison, loss = one.measured, _loss(one.measured)
    sign = 1 if loss < 0 else -1
    ends = sorted(100 * sign * end for end in (comparison.low, comparison.high))
    interval = "" if math.isnan(ends[0]) else f" (95 % interval {signed(ends[0])} to {signed(ends[1])})"
    return f"{one.row.scale.lost(loss / 100)}{interval}, {one.rows}"


def _recommendation(one: Candidate, limit: float) -> str:
    """The trial to deploy; or, where the held-out rows put it beyond the limit, that it is not clear yet."""
    trial, comparison, allowed = one.row.trial, one.measured, one.row.scale.limit(limit)
    if not one.within(_loss(comparison), limit):
        return (
            f"Deploy none of these yet: {trial.name}, within the limit of {allowed} on the rows that "
            f"chose it, {_change(one)}; more rows would tell."
        )
    size, whole = trial.number_of("size_bytes"), trial.number_of("size_fp32_bytes")
    sure = math.isfinite(comparison.low) and -100 * comparison.low <= limit + SLACK
    bound = "with its whole interval" if sure else "by its point estimate, though not with its whole interval"
    why = f"{_change(one)}; that is within the limit of {allowed} {bound}"
    if trial.verdict:
        why = f"{trial.verdict}; on these it {_change(one)}"
    words = (
        f"Deploy {trial.name}: it {why}. It takes {size / MB:.1f} MB, {whole / size:.1f} times less than FP32"
    )
    return f"{words}{_speed_words(trial)}{_caveats(one.row)}."


def _speed_words(trial: TrialRecord) -> str:
    value, low, high, where = _speed(trial)
    if value:
        return f"; it runs at {value:.2f} times FP32's speed ({low:.2f} to {high:.2f}; {where})"
    timed = math.isfinite(trial.number_of("latency_p50_ms"))
    return "; its speed was only simulated, which says nothing" if timed else "; its speed was not measured"


def _caveats(row: ComparedTrial) -> str:
    names = list(dict.fromkeys(alarm["name"] for alarm in row.trial.alarms))
    untested = f"; {NO_FILE}, so nothing was tested" if row.verdict == NO_FILE else ""
    return untested + (f"; look at its alarms first: {', '.join(names)}" if names else "")


def _closest(one: Candidate | None, limit: float, any_quantized: bool) -> str:
    if not any_quantized:
        return "Nothing to deploy: no quantized trial finished."
    if one is None:
        return "Deploy none of these: no quantized trial answers better than always naming one class."
    if one.row.trial.verdict:
        limit = float(one.row.trial.config["evaluation"]["max_drop"])
    return (
        f"Deploy none of these: no quantized trial stays within {one.row.scale.limit(limit)} of FP32; "
        f"the closest, {one.row.trial.name}, {_change(one)}."
    )


def _failure(one: Candidate | None) -> str:
    if one is None:
        return "No quantized trial is below FP32."
    alarms = one.row.trial.alarms
    raised = f"its alarm {alarms[0]['name']} says: {alarms[0]['message']}" if alarms else "it raised no alarm"
    return f"{one.row.trial.name} failed worst: it {_change(one)}; {raised}."
