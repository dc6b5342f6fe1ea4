"""Tries two remedies: the worst sites in 16 bits, and the largest weights clipped."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from torch import nn

from quantlab.analysis.outliers_config import OutliersConfig
from quantlab.cli.progress import progress
from quantlab.engines.insert import edited_weights
from quantlab.evaluation.significance import compare
from quantlab.methods.bits import weighted_modules
from quantlab.methods.clip_weight_outliers import ClipWeightOutliers
from quantlab.plan.plan import QuantPlan
from quantlab.profiling.profile import NoProfile
from quantlab.runtimes.runtime import TorchOnly
from quantlab.searching.evaluate import evaluate_candidate
from quantlab.searching.judge import Judge
from quantlab.searching.setup import PreparedModel
from quantlab.searching.space import Choices
from quantlab.storage.memo import Memo
from quantlab.tasks.scores import compute
from quantlab.trial.material import load_material, resolve_checkpoint
from quantlab.trial.result import TrialResult
from quantlab.trial.trial import run_trial


def protection_table(
    prepared: PreparedModel, ranked: Sequence[str], random_draws: int, seed: int
) -> pd.DataFrame:
    """Measures the metric on all rows with the worst variables at their widest and the rest narrow.

    Protects the first 0, 1, 2, 3, 5, 8, ... of ``ranked`` until the drop is at most ``search.max_drop``; then
    ``random_draws`` random sets of equally many variables. ``kind`` is reference, top or random.
    """
    runner, space = prepared.runner(), prepared.space
    judge, _ = prepared.judge(runner)
    rows: list[dict[str, object]] = []

    def measure(kind: str, names: Sequence[str], draw: int = 0) -> float:
        outcome = evaluate_candidate(runner, protected(prepared, names), prepared.label_columns, None)
        drop, (low, high, _) = judge.drop(outcome), judge.interval(outcome)
        rows.append(
            {
                "sites": len(names),
                "kind": kind,
                "draw": draw,
                judge.task.metrics[0]: judge.metric(outcome),
                judge.score.loss_names.value: drop,
                "low": low,
                "high": high,
                "n": outcome.rows,
                "protected": " ".join(names),
            }
        )
        return drop

    rows.append(_reference(judge, len(space.variables)))
    enough = None
    for count in fibonacci(len(ranked)):
        if measure("top", ranked[:count]) <= prepared.config.search.max_drop:
            enough = count
            break
    if enough:
        random = np.random.default_rng(seed)
        for draw in progress(range(random_draws), "random sites"):
            measure("random", [str(name) for name in random.choice(ranked, enough, replace=False)], draw)
    return pd.DataFrame(rows)


def protected(prepared: PreparedModel, names: Sequence[str]) -> Choices:
    """These variables at their widest, the rest at their narrowest."""
    narrow, wide = prepared.space.choices[0], prepared.space.choices[-1]
    return tuple(wide if variable.name in set(names) else narrow for variable in prepared.space.variables)


def fibonacci(most: int) -> Iterator[int]:
    """Yields 0, 1, 2, 3, 5, 8, ... below ``most``, then ``most``."""
    one, other = 0, 1
    while one < most:
        yield one
        one, other = other, max(one + other, other + 1)
    yield most


def check_clipping(config: OutliersConfig, memo: Memo) -> None:
    """Raises ValueError if no weight matrix has a grid, whose range is what clips. Reads no weights."""
    skeleton = resolve_checkpoint(config.trained, config.task, memo).skeleton
    linears = {
        name: module for name, module in weighted_modules(skeleton).items() if isinstance(module, nn.Linear)
    }
    on_grids = (
        (grid := config.bits.weight_grid(name, module)) is not None and grid.ranged
        for name, module in linears.items()
    )
    if config.outliers.clip and not any(on_grids):
        raise ValueError(
            f"outliers.clip clips weights by the range of their grid: bits.weights must be 2 to 16, got "
            f"{config.bits.weights!r}; outliers.clip=[] skips the clipping"
        )


def clipping_table(config: OutliersConfig, memo: Memo) -> pd.DataFrame:
    """Runs the trial, per tensor everywhere, with 0 and then each of ``outliers.clip`` weights clipped.

    Columns: the quantized network's metric, the clipped network's metric in FP32, and the paired difference
    from the trial without clipping.
    """
    rows, primary, without = [], config.task.metrics[0], None
    for count in progress([0, *config.outliers.clip], "clipping weights"):
        method = ClipWeightOutliers(sigmas=config.outliers.sigmas, count=count)
        result = run_trial(replace(config, method=method, profile=NoProfile(), runtime=TorchOnly()), memo)
        without = without or result
        gain = compare(primary, without.logits, result.logits, result.labels, clusters=result.clusters)
        clipped_fp32, weights = _fp32_clipped(config, method, memo, result)
        rows.append(
            {
                "clipped": count,
                "of": weights,
                "sigmas": config.outliers.sigmas,
                primary: result.metrics[primary],
                f"{primary}_fp32": result.metrics[f"{primary}_fp32"],
                f"{primary}_fp32_clipped": clipped_fp32,
                "difference": gain.difference,
                "low": gain.low,
                "high": gain.high,
                "n": gain.n,
            }
        )
    return pd.DataFrame(rows)


def _fp32_clipped(
    config: OutliersConfig, method: ClipWeightOutliers, memo: Memo, result: TrialResult
) -> tuple[float, int]:
    """The clipped network's metric in FP32, and the number of weights in its Linears."""
    material = load_material(config.trained, config.task, config.evaluation, memo)
    edits = method.edits(material.model, config.bits)
    with edited_weights(material.model, QuantPlan(edits=edits)):
        logits = material.predict("FP32, clipped").logits
    primary = config.task.metrics[0]
    weights = sum(
        module.weight.numel() for module in material.model.modules() if isinstance(module, nn.Linear)
    )
    return compute([primary], logits, result.labels)[primary], weights


def _reference(judge: Judge, variables: int) -> dict[str, object]:
    primary = judge.task.metrics[0]
    metric = compute([primary], judge.reference, judge.labels)[primary]
    return {
        "sites": variables,
        "kind": "reference",
        "draw": 0,
        primary: metric,
        judge.score.loss_names.value: 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": len(judge.labels),
        "protected": "",
    }
