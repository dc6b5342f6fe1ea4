"""Comparisons of a report: each trial with FP32 on the same examples, repeats, and trials in pairs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from quantlab.evaluation.significance import Comparison, compare, verdict
from quantlab.results.answers import SavedAnswers, measuring_rows
from quantlab.results.reading import Study, TrialRecord
from quantlab.results.scale import Scale
from quantlab.tasks.scores import loss_of

SEEDS = re.compile(r"(^|[._])(seed|draw)s?$")
PAIRS_OF = 12  # trials in the matrix of pairs: more are not readable, and cost
NO_FILE = "no answers file"


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedTrial:
    """A trial and its comparison with FP32 on all examples."""

    trial: TrialRecord
    scale: Scale  # of the primary metric
    value: float  # the primary metric
    comparison: Comparison | None  # trial less FP32, corrected for the report's trials; None where not tested
    verdict: str

    @property
    def p(self) -> float:
        """The corrected p-value; NaN where nothing was tested."""
        return self.comparison.p if self.comparison else math.nan

    @property
    def difference(self) -> float:
        """What was gained against FP32, a fraction: minus the loss; NaN where there is none."""
        return self.comparison.difference if self.comparison else math.nan

    @property
    def low(self) -> float:
        """The lower end of the metric's interval: that of the difference, around FP32's metric."""
        return self._ends[0]

    @property
    def high(self) -> float:
        """The upper end of the metric's interval."""
        return self._ends[1]

    @property
    def _ends(self) -> tuple[float, float]:
        if self.comparison is None:
            return math.nan, math.nan
        score, gained = self.scale.score, self.difference
        fp32 = self.value / (1 - gained) if score.relative else self.value - gained
        return self.scale.ends(fp32, -self.comparison.high, -self.comparison.low)


def compared_trials(study: Study) -> list[ComparedTrial]:
    """Every trial of the study compared with FP32, in the study's order."""
    tests = max(1, sum(trial.answers is not None and not trial.reference for trial in study.finished))
    compared = [_against_fp32(study.primary, trial, tests) for trial in study.trials]
    return [
        ComparedTrial(
            trial=trial,
            scale=study.scale,
            value=trial.number_of(study.primary),
            comparison=comparison,
            verdict=note or (verdict(comparison) if comparison else ""),
        )
        for trial, (comparison, note) in zip(study.trials, compared, strict=True)
    ]


def _against_fp32(metric: str, trial: TrialRecord, tests: int) -> tuple[Comparison | None, str]:
    """The comparison of a trial's answers with FP32's, and a note that, if any, replaces the verdict."""
    if trial.summary is None:
        return None, "failed: " + (trial.error.strip().split("\n")[0] or "no result")
    if trial.reference:
        return None, "the reference"
    answers = trial.answers
    if answers is None:
        return _untested(trial), NO_FILE
    comparison = _untested(trial) if trial.partial else answers.against_fp32(metric, tests)
    if answers.missing:
        what = "logits" if answers.classified or answers.labels.dtype.kind == "f" else "answers"
        return comparison, f"NaN or infinite {what} in {answers.missing:,} of {len(answers.labels):,} answers"
    return comparison, trial.verdict


def _untested(trial: TrialRecord) -> Comparison | None:
    """The difference and interval of the trial's result, without a test: where a trial stopped before the end
    its interval allows for that, and the tests here would not."""
    _, loss, low, high = loss_of(trial.metrics)
    return Comparison(n=0, difference=-loss, low=-high, high=-low, p=math.nan, needed=None)


def study_measuring_rows(study: Study, candidates: Sequence[ComparedTrial]) -> np.ndarray | None:
    """The examples, bool (N,), that measure and do not choose; None where all do both."""
    share, seed = study.evaluation.get("holdout", 0.0), study.evaluation.get("seed", 0)
    return measuring_rows([row.trial.answers for row in candidates], share, seed)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Trials that differ in nothing but seeds or draws."""

    name: str
    over: tuple[str, ...]  # what was repeated: calibration.seed
    values: tuple[float, ...]
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the metric."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Standard deviation over the repeats, of a sample."""
        return float(np.std(self.values, ddof=1))


def seed_overrides(study: Study) -> list[str]:
    """The swept overrides that repeat a trial: seeds and draws."""
    return [name for name in study.swept if SEEDS.search(name)]


def repeats(study: Study, rows: Sequence[ComparedTrial]) -> list[Repeat]:
    """The groups of two or more finished trials that differ in seeds alone."""
    over = seed_overrides(study)
    groups: dict[tuple[object, ...], list[ComparedTrial]] = {}
    for row in rows:
        trial = row.trial
        same = tuple((name, trial.settings.get(name, "")) for name in study.swept if name not in over)
        bare = " ".join(word for word in trial.name.split() if not SEEDS.search(word.split("=")[0]))
        if over and not math.isnan(row.value) and any(name in trial.settings for name in over):
            groups.setdefault((bare, same), []).append(row)
    return [
        Repeat(
            name=str(bare),
            over=tuple(over),
            values=tuple(row.value for row in group),
            differences=tuple(row.difference for row in group),
        )
        for (bare, _), group in groups.items()
        if len(group) > 1
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairMatrix:
    """Trials in pairs: ``comparisons[i, j]`` is row i less row j, corrected for all pairs."""

    rows: tuple[ComparedTrial, ...]
    comparisons: Mapping[tuple[int, int], Comparison]
    left_out: int


def pair_matrix(study: Study, rows: Sequence[ComparedTrial]) -> PairMatrix | None:
    """The best of the trials that answered all rows, in pairs; None where the metric is no mean over examples
    or fewer than two have answers."""
    score = study.scale.score
    if not (score.right_of or score.relative):
        return None
    whole = [row for row in rows if not row.trial.partial]
    usable = [row for row in whole if row.trial.answers is not None and not row.trial.answers.missing]
    best = sorted(usable, key=lambda row: -study.scale.sign * row.value)[:PAIRS_OF]
    chosen = [row for row in rows if row in best]  # in the table's order
    if len(chosen) < 2:
        return None
    pairs = list(combinations(range(len(chosen)), 2))
    return PairMatrix(
        rows=tuple(chosen),
        left_out=len(usable) - len(chosen),
        comparisons={
            (i, j): _pair(study.primary, _answers(chosen[i]), _answers(chosen[j]), len(pairs))
            for i, j in pairs
        },
    )


def _answers(row: ComparedTrial) -> SavedAnswers:
    assert row.trial.answers is not None
    return row.trial.answers


def _pair(metric: str, one: SavedAnswers, other: SavedAnswers, tests: int) -> Comparison:
    return compare(metric, other.logits, one.logits, one.labels, tests=tests, clusters=one.clusters)
