"""Ranges that do not fit what they are for."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quantlab.alarms.alarm import Alarm, Evidence, worst
from quantlab.plan.plan import ActivationQuant
from quantlab.quant.granularity import PerGroup, group_extremes
from quantlab.quant.grid import FloatGrid
from quantlab.quant.sketch import Sketch

FP16_MAX = 65504.0
CUT_SHARE = 0.01  # of a tensor's elements on the side of zero that its range leaves out
# docs/numbers.md has what these two separate.
WASTED = 1 / 16  # of the levels: four bits less would have done
MANY = 0.1  # of the weights
ENOUGH_LEVELS = 256  # a wider grid needs no more of its levels than one of 8 bits
ZEROED = 0.5  # of a weight's nonzero elements
OUTSIDE = 0.01  # of a tensor's elements: percentile clipping at 99.9 leaves 0.2 % outside
PERMUTED_SHARE = 0.5  # of the range that the median channel's group has: a bit for half of the channels


def one_sided_range(evidence: Evidence) -> Iterator[Alarm]:
    """Ranges that end at zero where values go on beyond it."""
    yield from _shares_over(
        "one_sided_range",
        "ranges leave out one side of zero",
        CUT_SHARE,
        [(item.cut, item.name) for item in evidence.coverages],
    )


def wasted_levels(evidence: Evidence) -> Iterator[Alarm]:
    """Activations whose levels nearly all go to outliers: four of eight bits hold nothing of the bulk.

    Only where one range serves the whole tensor. Weights are left out, as such grids do not tell plans that
    keep the answers from plans that lose them; ``sites.csv`` has all tensors' levels.
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
            f"all but 0.02 % "
            f"of the values lie: {worst([name for _, name in sorted(wasted)])}",
        )


def zeroed_weights(evidence: Evidence) -> Iterator[Alarm]:
    """Many weights that lose most of their elements to zero; a single one is a finding of ``sites.csv``."""
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
    """Tensors that their range cuts: their elements beyond it all become its end."""
    yield from _shares_over(
        "saturation",
        f"tensors have over {OUTSIDE:.0%} of their values outside their range",
        OUTSIDE,
        [(item.outside, item.name) for item in evidence.coverages],
    )


def fp16_overflow(evidence: Evidence) -> Iterator[Alarm]:
    """Sites kept in FP16 whose values FP16 cannot hold."""
    for item in evidence.plan.activations:
        sketch = evidence.sketches[item.site]
        largest = max(-sketch.min.min().item(), sketch.max.max().item())
        if isinstance(item.grid, FloatGrid) and item.grid.format == "fp16" and largest > FP16_MAX:
            yield Alarm("fp16_overflow", f"{item.site} reaches {largest:.0f}, FP16 ends at {FP16_MAX:.0f}")


def unpermuted_groups(evidence: Evidence) -> Iterator[Alarm]:
    """Groups of neighbouring channels, where channels sorted by their range would make the groups' ranges
    smaller."""
    grouped = [item for item in evidence.plan.activations if item.groups]
    gains = [(_permuted_share(item, evidence.sketches[item.site]), item.site) for item in grouped]
    poor = sorted(gain for gain in gains if gain[0] < PERMUTED_SHARE)
    if poor:
        names = worst([f"{name} ({share:.0%})" for share, name in poor])
        yield Alarm(
            "unpermuted_groups",
            f"{len(poor)} of {len(grouped)} sites with groups have neighbouring channels in one "
            f"group; sorted by "
            f"range, half of the channels would get under half the range: {names}",
        )


def _shares_over(name: str, what: str, limit: float, shares: list[tuple[float, str]]) -> Iterator[Alarm]:
    over = sorted(((share, tensor) for share, tensor in shares if share > limit), reverse=True)
    if over:
        names = worst([f"{tensor} ({share:.1%})" for share, tensor in over])
        yield Alarm(name, f"{len(over)} of {len(shares)} {what}: {names}")


def _permuted_share(item: ActivationQuant, sketch: Sketch) -> float:
    """The median channel's range in permuted groups by that in the groups as they are; 1 if these are
    permuted."""
    groups = torch.tensor(item.groups)
    if (groups.diff() < 0).any():
        return 1.0
    permuted = PerGroup(k=len(item.lo)).assign(sketch.min, sketch.max)
    now = _median_range(sketch, groups)
    return _median_range(sketch, permuted) / now if now > 0 else 1.0


def _median_range(sketch: Sketch, groups: Tensor) -> float:
    lo, hi = group_extremes(sketch.min, sketch.max, groups)
    return float((hi - lo)[groups].median())
