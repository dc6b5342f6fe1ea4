"""Runs one trial: quantizes a model, evaluates it, profiles it.

Nothing here depends on Hydra, MLflow or Optuna.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from quantlab.alarms import Evidence, raised_alarms
from quantlab.calibration.outlier_statistics import by_depth, by_site, hidden_states
from quantlab.engines.insert import insert
from quantlab.engines.integer import LinearExecution
from quantlab.evaluation.answering import Predictions, score
from quantlab.evaluation.verdicts import Verdict
from quantlab.machine.provenance import machine_tags
from quantlab.network.models import ModelSpec
from quantlab.network.sites import Site
from quantlab.plan.coverage import with_coverage
from quantlab.plan.plan import QuantPlan
from quantlab.plan.size import size_bytes, size_fp32_bytes
from quantlab.profiling.profile import Measurements
from quantlab.profiling.timing import TorchSubject
from quantlab.runtimes.runtime import FileRuntime
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Tokenized
from quantlab.tasks.scores import SCORES, Kind, compute
from quantlab.trial.config import TrialConfig, check_trial, plain_config
from quantlab.trial.deployed import measure_deployed
from quantlab.trial.environment import deciding_environment
from quantlab.trial.key import trial_key, trial_timing_key
from quantlab.trial.learned_plan import learned_plan_tags
from quantlab.trial.material import (
    Material,
    fp32_predictions,
    fp32_sketches,
    load_material,
    resolve_checkpoint,
)
from quantlab.trial.planning import Sketches, diagnose, trial_plan
from quantlab.trial.result import Metric, TrialResult, finite_or_none
from quantlab.trial.tags import engine_tags, processor_tags


def run_trial(config: TrialConfig, memo: Memo) -> TrialResult:
    """Runs one trial: quantizes the model, evaluates it on the task, profiles it.

    ``memo`` keeps what trials of one model, task and evaluation share. What it holds changes no number.
    Raises ValueError or OSError if the trial cannot run, before anything is loaded where that is possible.
    """
    sites = check_trial(config, memo)
    reference = fp32_of(config.model, config, memo)
    shared = (config.trained, config.task, config.evaluation)
    material, own = load_material(*shared, memo), fp32_of(config.trained, config, memo)
    seconds: dict[str, float] = {}

    with timed("calibrate_s", seconds):
        seen_rows = (*shared, *config.calibration.observation_key)
        fp32 = memo.get("sketches", seen_rows, lambda: fp32_sketches(material, config.calibration))
        plan, sketches = trial_plan(config, material, sites, fp32)

    with insert(material.model, plan, config.engine) as inserted:
        predictions = own if plan == QuantPlan() else material.answer(reference, "evaluating")
    seconds["evaluate_s"] = predictions.seconds

    with timed("profile_s", seconds):
        profile = profile_plan(config, material, plan)
    deployed = deploy_plan(config, material, plan, predictions)

    run = TrialRun(
        plan=plan,
        fp32_sketches=fp32,
        sketches=sketches,
        predictions=predictions,
        reference=reference,
        own=own,
        linears=inserted.linears,
        measurements=Measurements(
            metrics=profile.metrics | deployed.metrics, tags=profile.tags | deployed.tags
        ),
        seconds=seconds,
    )
    return result_of(config, memo, material, sites, run)


def fp32_of(model: ModelSpec, config: TrialConfig, memo: Memo) -> Predictions:
    """The FP32 model's answers to the trial's rows, once."""
    shared = (model, config.task, config.evaluation)
    return memo.get("reference", shared, lambda: fp32_predictions(load_material(*shared, memo)))


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialRun:
    """What a trial's steps computed."""

    plan: QuantPlan
    fp32_sketches: Sketches  # of every site of the FP32 network
    sketches: Sketches  # of the trial's sites, in the network that calibrated them
    predictions: Predictions  # to all rows, or those of its verdict
    reference: Predictions  # of the FP32 network that the trial names, to all rows
    own: Predictions  # of the FP32 network that is quantized: another one where a training made it
    linears: Mapping[str, LinearExecution]  # by path; empty unless the engine is integer
    measurements: Measurements  # of the profile, and of the deployed model
    seconds: Mapping[str, float]  # by step

    @property
    def verdict(self) -> Verdict | None:
        """What the answers decided; None where all rows were asked for."""
        return self.predictions.verdict

    @property
    def reference_logits(self) -> np.ndarray:
        """The FP32 network's outcomes for the rows that the trial answered."""
        return self.answered(self.reference.logits)

    def answered(self, values: np.ndarray) -> np.ndarray:
        """Those of the selected rows' values, (N, ...), that are of rows which the trial answered."""
        return values if self.verdict is None else values[self.verdict.rows]


def profile_plan(config: TrialConfig, material: Material, plan: QuantPlan) -> Measurements:
    """Profiles the plan as the trial's engine runs it.

    FP32 runs in turns with the integer engine. A simulated plan has no speed-up: its arithmetic is FP32's.
    """
    fp32 = torch_subject(config, material, QuantPlan())
    reference = fp32 if config.engine == "integer" and plan != QuantPlan() else None
    subject = torch_subject(config, material, plan)
    return config.profile.measure(subject, reference, material.rows, material.loaded.processor)


def deploy_plan(
    config: TrialConfig, material: Material, plan: QuantPlan, predictions: Predictions
) -> Measurements:
    """Evaluates and profiles the plan's exported model in the trial's runtime, unless that is torch."""
    if not isinstance(config.runtime, FileRuntime):
        return Measurements(metrics={}, tags={})
    fp32 = torch_subject(config, material, QuantPlan())
    return measure_deployed(config.runtime, config.profile, material, plan, predictions.logits, fp32)


def torch_subject(config: TrialConfig, material: Material, plan: QuantPlan) -> TorchSubject:
    """Returns the plan as the trial's engine runs it, to be timed in a fresh process."""
    loaded = material.loaded
    return TorchSubject(
        folder=loaded.folder,
        head=loaded.head,
        plan=plan,
        engine=config.engine,
        device=str(loaded.model.device),
    )


def result_of(
    config: TrialConfig, memo: Memo, material: Material, sites: Sequence[Site], run: TrialRun
) -> TrialResult:
    """Adds scores, sizes, statistics, tags and alarms to what the steps computed."""
    device, verdict = material.model.device, run.verdict
    measured_tags = {
        **run.measurements.tags,
        **engine_tags(run.plan, run.linears),
        **({} if verdict is None else {"verdict": verdict.word}),
    }
    evidence = Evidence(
        config=plain_config(config),
        plan=run.plan,
        sites=material.sites,
        sketches=run.sketches,
        model=material.model,
        tags=material.loaded.tags | measured_tags | processor_tags(material),
        metrics=metrics_of(config, material, run),
        logits=run.predictions.logits,
        reference=run.reference_logits,
        labels=run.answered(material.rows.labels),
        kind=config.task.kind,
    )
    alarms = raised_alarms(evidence)
    reference = resolve_checkpoint(config.model, config.task, memo)
    tags = {
        **material.loaded.tags,
        **material.data_tags,
        **machine_tags(device),
        **deciding_environment(device),
        **measured_tags,
        **processor_tags(material),
        **learned_plan_tags(material.loaded.folder, config, sites),
        "checkpoint_fingerprint": material.loaded.fingerprint,
        "reference": reference.tags["checkpoint"],
        "reference_fingerprint": reference.fingerprint,
        "data_fingerprint": material.data_fingerprint,
        "plan_fingerprint": run.plan.fingerprint,
        "key": trial_key(config, memo),
        "timing_key": trial_timing_key(config),
        "alarms": ", ".join(dict.fromkeys(alarm.name for alarm in alarms)),
    }
    return TrialResult(
        metrics=evidence.metrics,
        config=evidence.config,
        tags=tags,
        alarms=alarms,
        plan=run.plan,
        linears=run.linears,
        sites=with_coverage(diagnose(config, material, sites, run.plan, run.sketches), evidence.coverages),
        outliers=by_site(run.fp32_sketches),
        labels=evidence.labels,
        logits=evidence.logits,
        reference=evidence.reference,
        kind=config.task.kind,
        clusters=None if material.clusters is None else run.answered(material.clusters),
        rows=None if verdict is None else verdict.rows,
    )


def metrics_of(config: TrialConfig, material: Material, run: TrialRun) -> dict[str, Metric]:
    """Returns every number of the trial, under the names that MLflow and ``result.json`` share."""
    layers = by_depth(run.fp32_sketches, hidden_states(material.sites))
    clusters = None if material.clusters is None else run.answered(material.clusters)
    labels = run.answered(material.rows.labels)
    scores = score(config.task, labels, run.predictions.logits, run.reference_logits, clusters)
    if run.verdict is not None and (test := material.test(run.reference)) is not None:
        scores |= test.estimates(run.verdict, scores)
    if config.trained != config.model:
        primary = SCORES[config.task.metrics[0]].name
        scores[f"{primary}_trained_fp32"] = compute([primary], run.own.logits, material.rows.labels)[primary]
    if config.task.kind is Kind.WINDOWS and isinstance(material.rows, Tokenized):
        scores["unigram_perplexity"] = material.rows.unigram_perplexity()
    numbers = {
        **scores,
        **run.measurements.metrics,
        "size_bytes": float(size_bytes(material.model, run.plan)),
        "size_fp32_bytes": float(size_fp32_bytes(material.model)),
        "kurtosis_max": max(filter(math.isfinite, layers["kurtosis"]), default=math.nan),
        **run.seconds,
    }
    by_layer = {name: [finite_or_none(value) for value in values] for name, values in layers.items()}
    return {name: finite_or_none(value) for name, value in numbers.items()} | by_layer


@contextmanager
def timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    """Writes the duration of the block into ``seconds[step]``."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
