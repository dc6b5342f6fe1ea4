"""What brings the answers back: the worst sites in 16 bits, and the few weights behind the outliers
clipped."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from torch import nn

from quantlab.analysis.outliers_config import OutliersConfig
from quantlab.cli.progress import progress
from quantlab.engines.insert import clipped_weights
from quantlab.evaluation.significance import compare
from quantlab.methods.bits import weighted_modules
from quantlab.methods.clip_weight_outliers import ClipWeightOutliers
from quantlab.profiling.profile import NoProfile
from quantlab.quant.grid import AffineGrid
from quantlab.runtimes.runtime import TorchOnly
from quantlab.searching.evaluate import Judge, evaluate
from quantlab.searching.setup import Bench
from quantlab.searching.space import Choices
from quantlab.storage.memo import Memo
from quantlab.tasks import metrics
from quantlab.trial.material import load_material, resolve_checkpoint
from quantlab.trial.result import TrialResult
from quantlab.trial.trial import run_trial


def protection_table(ready: Bench, ranked: Sequence[str], random_draws: int, seed: int) -> pd.DataFrame:
    """The metric on all rows with the first 0, 1, 2, 3, 5, 8, ... of the ranked variables at their widest and
    the rest narrow, until it is within ``search.max_drop`` of the reference; then with as many variables
    drawn at random."""
    runner, space = ready.runner(), ready.space
    judge, _ = ready.judge(runner)
    rows: list[dict[str, object]] = []

    def measure(kind: str, names: Sequence[str], draw: int = 0) -> float:
        outcome = evaluate(runner, protected(ready, names), ready.material.loaded.label_columns, None)
        drop, (low, high, _) = judge.drop(outcome), judge.interval(outcome)
        rows.append(
            {
                "sites": len(names),
                "kind": kind,
                "draw": draw,
                judge.task.metrics[0]: judge.metric(outcome),
                "drop_points": drop,
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
        if measure("top", ranked[:count]) <= ready.config.search.max_drop:
            enough = count
            break
    if enough:
        random = np.random.default_rng(seed)
        for draw in progress(range(random_draws), "random sites"):
            measure("random", [str(name) for name in random.choice(ranked, enough, replace=False)], draw)
    return pd.DataFrame(rows)


def protected(ready: Bench, names: Sequence[str]) -> Choices:
    """These variables at their widest, the rest at their narrowest."""
    narrow, wide = ready.space.choices[0], ready.space.choices[-1]
    return tuple(wide if variable.name in set(names) else narrow for variable in ready.space.variables)


def fibonacci(most: int) -> Iterator[int]:
    """0, 1, 2, 3, 5, 8, ... up to ``most``, which comes last."""
    one, other = 0, 1
    while one < most:
        yield one
        one, other = other, max(one + other, other + 1)
    yield most


def check_clipping(config: OutliersConfig, memo: Memo) -> None:
    """Raises ValueError where no matrix is on a grid, whose range is what clips it; no weight is read."""
    skeleton = resolve_checkpoint(config.model, config.task, memo).skeleton
    linears = {
        name: module for name, module in weighted_modules(skeleton).items() if isinstance(module, nn.Linear)
    }
    on_grids = (
        isinstance(config.bits.weight_grid(name, module), AffineGrid) for name, module in linears.items()
    )
    if config.outliers.clip and not any(on_grids):
        raise ValueError(
            f"outliers.clip clips weights by the range of their grid: bits.weights must be 2 to 16, got "
            f"{config.bits.weights!r}; outliers.clip=[] leaves the clipping out"
        )


def clipping_table(config: OutliersConfig, memo: Memo) -> pd.DataFrame:
    """The trial, per tensor everywhere, with 0, then each number of ``outliers.clip`` weights clipped.

    The metric of the quantized network and of the clipped one in FP32, and the paired difference from the
    trial without clipping."""
    rows, primary, without = [], config.task.metrics[0], None
    for count in progress([0, *config.outliers.clip], "clipping weights"):
        method = ClipWeightOutliers(sigmas=config.outliers.sigmas, count=count)
        result = run_trial(replace(config, method=method, profile=NoProfile(), runtime=TorchOnly()), memo)
        without = without or result
        gain = compare(primary, without.logits, result.logits, result.labels)
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
    """The clipped network's metric in FP32, and how many weights its Linears have."""
    material = load_material(config.model, config.task, config.evaluation, memo)
    with clipped_weights(material.model, method.weight_limits(material.model, config.bits)):
        logits = material.predict("FP32, clipped").logits
    primary = config.task.metrics[0]
    weights = sum(
        module.weight.numel() for module in material.model.modules() if isinstance(module, nn.Linear)
    )
    return metrics.compute([primary], logits, result.labels)[primary], weights


def _reference(judge: Judge, variables: int) -> dict[str, object]:
    primary = judge.task.metrics[0]
    metric = metrics.compute([primary], judge.reference, judge.labels)[primary]
    return {
        "sites": variables,
        "kind": "reference",
        "draw": 0,
        primary: metric,
        "drop_points": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": len(judge.labels),
        "protected": "",
    }
