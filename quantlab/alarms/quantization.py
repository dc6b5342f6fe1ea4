"""Alarms about ranges that do not fit their tensors."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantlab.alarms.alarm import Alarm, Evidence, first_few
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.granularity import PerGroup, group_extremes
from quantlab.quant.grid import FloatGrid
from quantlab.quant.sketch import Sketch

FP16 = FloatGrid(format="fp16")
FP16_MAX = 65504.0
CUT_SHARE = 0.01  # of a tensor's elements, on the side of zero that its range leaves out
# docs/numbers.md shows which plans these two tell apart.
WASTED = 1 / 16  # share of the levels in use: four bits less would do
MANY = 0.1  # share of the weights
ENOUGH_LEVELS = 256  # a wider grid needs no more levels in use than one of 8 bits
ZEROED = 0.5  # share of a weight's nonzero elements
OUTSIDE = 0.01  # share of a tensor's elements; percentile 99.9 clips 0.2 %
PERMUTED_SHARE = 0.5  # of the range of the median channel's group: one bit more for half of the channels


def one_sided_range(evidence: Evidence) -> Iterator[Alarm]:
    """Ranges that end at zero although the tensor has values beyond it."""
    yield from _shares_over(
        "one_sided_range",
        "ranges leave out one side of zero",
        CUT_SHARE,
        [(item.cut, item.name) for item in evidence.coverages],
    )


def wasted_levels(evidence: Evidence) -> Iterator[Alarm]:
    """Activations whose outliers take nearly all levels: all other values use under a sixteenth of them.

    Checks only activations with one range. For weights it does not tell plans that keep the answers from
    plans that lose them; ``sites.csv`` has the levels of all tensors.
    """
    judged = [(item.used, item) for item in evidence.coverages if item.used is not None and not item.weight]
    wasted = [
        (used / item.levels, f"{item.name} ({used} of {item.levels})")
        for used, item in judged
        if used < WASTED * min(item.levels, ENOUGH_LEVELS)
    ]
    if wasted:
        yield Alarm(
            "wasted_levels",
            f"{len(wasted)} of {len(judged)} activations have under a sixteenth of their levels where "
            f"all but 0.02 % of the values lie: {first_few([name for _, name in sorted(wasted)])}",
        )


def zeroed_weights(evidence: Evidence) -> Iterator[Alarm]:
    """Many weights that lose most of their elements to zero. ``sites.csv`` shows single ones."""
    weights = [item for item in evidence.coverages if item.weight]
    zeroed = [item for item in weights if item.zeroed > ZEROED]
    if len(zeroed) > MANY * len(weights):
        yield from _shares_over(
            "zeroed_weights",
            "weights lose over half of their nonzero elements to zero",
            ZEROED,
            [(item.zeroed, item.name) for item in weights],
        )


def saturation(evidence: Evidence) -> Iterator[Alarm]:
    """Tensors with many elements outside their range, which quantization moves to its ends."""
    yield from _shares_over(
        "saturation",
        f"tensors have over {OUTSIDE:.0%} of their values outside their range",
        OUTSIDE,
        [(item.outside, item.name) for item in evidence.coverages],
    )


def fp16_overflow(evidence: Evidence) -> Iterator[Alarm]:
    """Sites in FP16 with values that FP16 cannot hold."""
    for item in evidence.plan.activations:
        sketch = evidence.sketches[item.site]
        largest = max(-sketch.min.min().item(), sketch.max.max().item())
        if item.grid == FP16 and largest > FP16_MAX:
            yield Alarm("fp16_overflow", f"{item.site} reaches {largest:.0f}, FP16 ends at {FP16_MAX:.0f}")


def unpermuted_groups(evidence: Evidence) -> Iterator[Alarm]:
    """Groups of neighbouring channels where groups of channels sorted by range would have smaller ranges."""
    grouped = [item for item in evidence.plan.activations if item.groups]
    gains = [(_permuted_share(item, evidence.sketches[item.site]), item.site) for item in grouped]
    poor = sorted(gain for gain in gains if gain[0] < PERMUTED_SHARE)
    if poor:
        names = first_few([f"{name} ({share:.0%})" for share, name in poor])
        yield Alarm(
            "unpermuted_groups",
            f"{len(poor)} of {len(grouped)} sites with groups have neighbouring channels in one group; "
            f"sorted by range, half of the channels would get under half the range: {names}",
        )


def _shares_over(name: str, what: str, limit: float, shares: list[tuple[float, str]]) -> Iterator[Alarm]:
    over = sorted(((share, tensor) for share, tensor in shares if share > limit), reverse=True)
    if over:
        names = first_few([f"{tensor} ({share:.1%})" for share, tensor in over])
        yield Alarm(name, f"{len(over)} of {len(shares)} {what}: {names}")


def _permuted_share(item: ActivationQuant, sketch: Sketch) -> float:
    """Returns the range of the median channel's group if channels are permuted, divided by the range as is.

    Returns 1 if the groups are permuted already.
    """
    groups = torch.tensor(item.groups)
    if (groups.diff() < 0).any():
        return 1.0
    permuted = PerGroup(k=len(item.lo)).assign(sketch.min, sketch.max)
    as_is = _median_range(sketch, groups)
    return _median_range(sketch, permuted) / as_is if as_is > 0 else 1.0


def _median_range(sketch: Sketch, groups: Tensor) -> float:
    lo, hi = group_extremes(sketch.min, sketch.max, groups)
    return float((hi - lo)[groups].median())
