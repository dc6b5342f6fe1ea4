"""A trial: quantize, evaluate, profile. It knows nothing of Hydra, MLflow or Optuna."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

from quantlab.alarms import Evidence, raised_alarms
from quantlab.calibration.estimators import Calibration
from quantlab.calibration.outlier_statistics import by_depth, by_site, hidden_states
from quantlab.config.checks import one_of
from quantlab.engines.insert import ENGINES, insert
from quantlab.engines.integer import LinearExecution
from quantlab.evaluation.answering import Evaluation, Predictions, score
from quantlab.machine.provenance import machine_tags
from quantlab.methods.bits import Bits, weighted_modules
from quantlab.methods.method import Method, check_weight_ranges
from quantlab.network.architecture import all_sites
from quantlab.network.compatibility import check_token_types
from quantlab.network.models import ModelSpec
from quantlab.network.sites import Placement, Site
from quantlab.plan.coverage import with_coverage
from quantlab.plan.plan import QuantPlan
from quantlab.plan.size import size_bytes, size_fp32_bytes
from quantlab.profiling.profile import Measurements, NoProfile, Profile
from quantlab.profiling.timing import TorchSubject
from quantlab.runtimes.runtime import FileRuntime, Runtime, TorchOnly
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import tokenize
from quantlab.tasks.task import Task
from quantlab.trial.deployed import measure_deployed
from quantlab.trial.key import deciding_environment, key_of, timing_key
from quantlab.trial.material import (
    Material,
    fp32_predictions,
    fp32_sketches,
    load_material,
    load_splits,
    resolve_checkpoint,
    select_rows,
    tokenized_rows,
)
from quantlab.trial.planning import Sketches, diagnose, make_plan
from quantlab.trial.result import REFERENCE, Metric, TrialResult, finite_or_none, plain_data


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """All that decides a trial's numbers."""

    model: ModelSpec
    task: Task
    placement: Placement
    calibration: Calibration
    bits: Bits
    method: Method
    evaluation: Evaluation
    profile: Profile
    engine: str = "integer"  # or simulated: what computes the answers and is timed
    runtime: Runtime = field(default_factory=TorchOnly)  # what answers and is timed besides

    def __post_init__(self) -> None:
        one_of("engine", self.engine, ENGINES)


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a trial's steps found."""

    plan: QuantPlan
    fp32: Sketches  # of every site, seen in the FP32 network
    calibrated: Sketches  # of the trial's sites, as its ranges saw them
    answers: Predictions
    reference: Predictions
    measured: Measurements
    linears: Mapping[
        str, LinearExecution
    ]  # what each Linear ran on, by path; empty unless the integer engine ran
    seconds: dict[str, float]


def run_trial(config: TrialConfig, memo: Memo) -> TrialResult:
    """One trial. What ``memo`` holds of earlier ones is not computed again; the numbers are the same either
    way.

    Raises ValueError or OSError, before anything is loaded where that is possible, on what cannot be right.
    """
    sites = check_trial(config, memo)
    shared = (config.model, config.task, config.evaluation)
    material = load_material(*shared, memo)
    reference = memo.get("reference", shared, lambda: fp32_predictions(material))
    seconds: dict[str, float] = {}
    with _timed(seconds, "calibrate_s"):
        seen = (*shared, *config.calibration.data)
        fp32 = memo.get("sketches", seen, lambda: fp32_sketches(material, config.calibration))
        plan, calibrated = make_plan(config, material, sites, fp32)
    with insert(material.model, plan, config.engine) as inserted:
        answers = material.predict("evaluating") if plan != QuantPlan() else reference
    with _timed(seconds, "profile_s"):
        measured = profiled(config, material, plan)
    deployed = deploy(config, material, plan, answers)
    return report(
        config,
        material,
        sites,
        Outcome(
            plan=plan,
            fp32=fp32,
            calibrated=calibrated,
            answers=answers,
            reference=reference,
            linears=inserted.linears,
            measured=Measurements(
                metrics=measured.metrics | deployed.metrics, tags=measured.tags | deployed.tags
            ),
            seconds={**seconds, "evaluate_s": answers.seconds},
        ),
    )


def check_trial(config: TrialConfig, memo: Memo) -> list[Site]:
    """The sites of this trial, found before any weight is read.

    Raises ValueError or OSError where a name, glob, group count, device or folder of the config cannot be
    right, and where checkpoint, tokenizer and rows do not fit each other.
    """
    config.runtime.check()
    found = resolve_checkpoint(config.model, config.task, memo)
    skeleton, calibrating = found.skeleton, config.calibration.rows(load_splits(config.task, memo).train)
    for rows in (
        tokenize(calibrating, found.tokenizer, config.task.max_length),
        tokenized_rows(config.model, config.task, config.evaluation, memo),
    ):
        check_token_types(rows, skeleton, found.folder)
    sites = config.placement.select(all_sites(skeleton))
    config.method.check(sites)
    modules = weighted_modules(skeleton)
    config.bits.check_rules([*(site.name for site in sites), *modules])
    config.bits.check_kinds(list(modules.values()))
    check_weight_ranges(config.bits, config.calibration)
    return sites


def trial_key(config: TrialConfig, memo: Memo) -> str:
    """What names the trial's numbers, found without running it: files are read, no weight is loaded."""
    shared = (config.model, config.task, config.evaluation)

    def read() -> tuple[str, str]:
        found = resolve_checkpoint(config.model, config.task, memo)
        return found.fingerprint, select_rows(config.task, config.evaluation, memo)[2]

    return _key(config, *memo.get("fingerprints", shared, read))


def trial_timing_key(config: TrialConfig) -> str:
    """What names the circumstances of the trial's latencies, here and now; empty where nothing is timed."""
    if isinstance(config.profile, NoProfile):
        return ""
    return timing_key(plain_data(config.profile), config.model.torch_device())


def _key(config: TrialConfig, checkpoint: str, data: str) -> str:
    names = ("onnx", "onnxscript", config.runtime.package) if isinstance(config.runtime, FileRuntime) else ()
    versions = {f"version.{name}": version(name) for name in names}
    return key_of(plain_config(config), checkpoint, data, config.model.torch_device(), versions)


def plain_config(config: TrialConfig) -> dict[str, Any]:
    """The config as plain data."""
    return {field.name: plain_data(getattr(config, field.name)) for field in fields(TrialConfig)}


def report(config: TrialConfig, material: Material, sites: Sequence[Site], outcome: Outcome) -> TrialResult:
    """Everything that a trial says about itself."""
    logits, reference, labels = outcome.answers.logits, outcome.reference.logits, material.rows.labels
    numbers, data = metrics(config, material, outcome), plain_config(config)
    measured = {**outcome.measured.tags, **engine_tags(outcome.plan, outcome.linears)}
    evidence = Evidence(
        config=data,
        plan=outcome.plan,
        sites=material.sites,
        sketches=outcome.calibrated,
        model=material.model,
        tags=material.loaded.tags | measured,
        metrics=numbers,
        logits=logits,
        reference=reference,
        labels=labels,
        regression=config.task.regression,
    )
    alarms = raised_alarms(evidence)
    tags = {
        **material.loaded.tags,
        **machine_tags(material.model.device),
        **deciding_environment(material.model.device),
        **measured,
        "checkpoint_fingerprint": material.loaded.fingerprint,
        "data_fingerprint": material.data_fingerprint,
        "plan_fingerprint": outcome.plan.fingerprint,
        "key": _key(config, material.loaded.fingerprint, material.data_fingerprint),
        "timing_key": trial_timing_key(config),
        "alarms": ", ".join(dict.fromkeys(alarm.name for alarm in alarms)),
    }
    return TrialResult(
        metrics=numbers,
        config=data,
        tags=tags,
        alarms=alarms,
        plan=outcome.plan,
        linears=outcome.linears,
        sites=with_coverage(
            diagnose(config, material, sites, outcome.plan, outcome.calibrated), evidence.coverages
        ),
        outliers=by_site(outcome.fp32),
        labels=labels,
        logits=logits,
        reference=reference,
    )


def profiled(config: TrialConfig, material: Material, plan: QuantPlan) -> Measurements:
    """The trial's profile, next to FP32 where it has a speed of its own: simulated arithmetic has none."""
    fp32 = torch_subject(config, material, QuantPlan())
    reference = fp32 if config.engine == "integer" and plan != QuantPlan() else None
    subject = torch_subject(config, material, plan)
    return config.profile.measure(subject, reference, material.rows, material.loaded.tokenizer)


def deploy(config: TrialConfig, material: Material, plan: QuantPlan, answers: Predictions) -> Measurements:
    """The trial on the runtime that it names; nothing where that is torch."""
    if not isinstance(config.runtime, FileRuntime):
        return Measurements(metrics={}, tags={})
    return measure_deployed(
        config.runtime,
        material.loaded,
        plan,
        material.rows,
        material.batches,
        config.task,
        answers.logits,
        config.profile,
        torch_subject(config, material, QuantPlan()),
    )


def torch_subject(config: TrialConfig, material: Material, plan: QuantPlan) -> TorchSubject:
    """What a fresh process needs to run a plan as this trial does."""
    loaded = material.loaded
    return TorchSubject(
        folder=loaded.folder, plan=plan, engine=config.engine, device=str(loaded.model.device)
    )


def engine_tags(plan: QuantPlan, linears: Mapping[str, LinearExecution]) -> dict[str, str]:
    """What computed the answers: FP32, FP32 arithmetic on quantized values, or integers in how many
    Linears."""
    if plan == QuantPlan():
        return {"engine": REFERENCE}
    kernels = [ran.on for ran in linears.values() if ran.in_integers]
    if not kernels:
        return {"engine": "simulated"}
    return {
        "engine": "integer",
        "integer_linears": f"{len(kernels)} of {len(linears)}",
        "integer_kernels": ", ".join(sorted(set(kernels))),
    }


def metrics(config: TrialConfig, material: Material, outcome: Outcome) -> dict[str, Metric]:
    """Every number of the trial, under the names that MLflow and ``result.json`` share."""
    layers = by_depth(outcome.fp32, hidden_states(material.sites))
    scores = score(config.task, material.rows.labels, outcome.answers.logits, outcome.reference.logits)
    numbers = {
        **scores,
        **outcome.measured.metrics,
        "size_bytes": float(size_bytes(material.model, outcome.plan)),
        "size_fp32_bytes": float(size_fp32_bytes(material.model)),
        "kurtosis_max": max(filter(math.isfinite, layers["kurtosis"]), default=math.nan),
        **outcome.seconds,
    }
    listed = {name: [finite_or_none(value) for value in values] for name, values in layers.items()}
    return {name: finite_or_none(value) for name, value in numbers.items()} | listed


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
