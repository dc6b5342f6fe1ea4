"""Signs that a number does not mean what it seems to: each would have caught a mistake that was published."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.evaluation import CONSTANT_SHARE, largest_share
from quantlab.placement.plan import QuantPlan
from quantlab.quant.grid import AffineGrid, FloatGrid, Grid
from quantlab.quant.sketch import BUCKETS, Sketch

FP16_MAX = 65504.0
CUT_SHARE = 0.01  # of a tensor's elements on the side of zero that its range leaves out


@dataclass(frozen=True)
class Alarm:
    """A name for filters, and a sentence for people."""

    name: str
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What alarms look at."""

    plan: QuantPlan
    sketches: Mapping[str, Sketch]  # by site, as the ranges saw them
    model: PreTrainedModel  # in FP32
    tags: Mapping[str, str]
    logits: np.ndarray  # (N, classes)
    reference: np.ndarray  # the FP32 logits, (N, classes)
    labels: np.ndarray  # (N,)
    regression: bool


def raised(finding: Finding) -> tuple[Alarm, ...]:
    """All alarms that a trial gives cause for."""
    return tuple(alarm for check in ALARMS for alarm in check(finding))


def constant_prediction(finding: Finding) -> Iterator[Alarm]:
    """One class takes nearly all answers."""
    share = 0.0 if finding.regression else largest_share(finding.logits.argmax(-1))
    if share >= CONSTANT_SHARE:
        yield Alarm("constant_prediction", f"{share:.1%} of the answers are the same class")


def majority_accuracy(finding: Finding) -> Iterator[Alarm]:
    """Accuracy within one standard error of always answering the most frequent class, or below: quantized, and FP32."""
    if finding.regression:
        return
    majority = largest_share(finding.labels)
    error = float(np.sqrt(majority * (1 - majority) / len(finding.labels)))
    for name, logits in (("majority_accuracy", finding.logits), ("majority_accuracy_fp32", finding.reference)):
        accuracy = float(np.mean(logits.argmax(-1) == finding.labels))
        if accuracy <= majority + error:
            yield Alarm(
                name, f"accuracy is {accuracy:.4f}, always answering the most frequent class gives {majority:.4f}"
            )


def one_sided_range(finding: Finding) -> Iterator[Alarm]:
    """Ranges that end at zero where values go on beyond it."""
    shares = [(item.site, item.grid, item.lo, item.hi, _sketch_shares(finding.sketches[item.site]))
              for item in finding.plan.activations]  # fmt: skip
    shares += [(item.parameter, item.grid, item.lo, item.hi, _shares(finding.model.get_parameter(item.parameter)))
               for item in finding.plan.weights]  # fmt: skip
    cut = [name for name, grid, lo, hi, sides in shares if _cuts_a_side(grid, lo, hi, *sides)]
    if cut:
        names = ", ".join(cut[:3]) + (", ..." if len(cut) > 3 else "")
        yield Alarm("one_sided_range", f"{len(cut)} of {len(shares)} ranges leave out one side of zero: {names}")


def fp16_overflow(finding: Finding) -> Iterator[Alarm]:
    """Sites kept in FP16 whose values FP16 cannot hold."""
    for item in finding.plan.activations:
        sketch = finding.sketches[item.site]
        largest = max(-sketch.min.min().item(), sketch.max.max().item())
        if isinstance(item.grid, FloatGrid) and item.grid.format == "fp16" and largest > FP16_MAX:
            yield Alarm("fp16_overflow", f"{item.site} reaches {largest:.0f}, FP16 ends at {FP16_MAX:.0f}")


def label_order_assumed(finding: Finding) -> Iterator[Alarm]:
    """The checkpoint does not say which logit is which label."""
    if finding.tags.get("label_order") == "assumed":
        yield Alarm("label_order_assumed", "the checkpoint has no label names: its order is taken to be the task's")


def runtime_fell_back(finding: Finding) -> Iterator[Alarm]:
    """A runtime that runs products in float that its file has in integers."""
    if finding.tags.get("runtime_fell_back") == "True":
        yield Alarm(
            "runtime_fell_back", f"{finding.tags['runtime']} runs {finding.tags['deployed_products']}: no INT8 latency"
        )


ALARMS = (
    constant_prediction, majority_accuracy, one_sided_range, fp16_overflow, label_order_assumed, runtime_fell_back,
)  # fmt: skip


def _cuts_a_side(grid: Grid, lo: tuple[float, ...], hi: tuple[float, ...], negative: float, positive: float) -> bool:
    if not isinstance(grid, AffineGrid) or grid.symmetric:
        return False
    return (min(lo) >= 0 and negative > CUT_SHARE) or (max(hi) <= 0 and positive > CUT_SHARE)


def _shares(x: Tensor) -> tuple[float, float]:
    """The shares of negative and of positive elements; zeros are neither."""
    return float((x < 0).float().mean()), float((x > 0).float().mean())


def _sketch_shares(sketch: Sketch) -> tuple[float, float]:
    negative, positive = sketch.histogram[1 : BUCKETS // 2], sketch.histogram[BUCKETS // 2 + 1 :]  # less their zeros
    return float(negative.sum()) / max(sketch.elements, 1), float(positive.sum()) / max(sketch.elements, 1)
