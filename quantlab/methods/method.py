"""What a quantization method is: a pure function from what calibration saw to a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from quantlab.calibration.estimators import Calibration
from quantlab.machine.parallel import side_by_side
from quantlab.methods.bits import Bits, tied_weights, weight_of, weighted_modules
from quantlab.network.sites import Site
from quantlab.plan.plan import ActivationQuant, QuantPlan, WeightQuant
from quantlab.quant.granularity import PER_TENSOR, Granularity
from quantlab.quant.grid import FloatGrid, Grid
from quantlab.quant.ranges import group_ranges, weight_range
from quantlab.quant.sketch import Sketch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """How a method wants a site quantized, before any range is known."""

    grid: Grid
    granularity: Granularity = PER_TENSOR


@dataclass(frozen=True, kw_only=True)
class Method:
    """One file and one YAML a method. Most override :meth:`site_spec` alone."""

    def check(self, sites: Sequence[Site]) -> None:
        """Raises ValueError where the method cannot do its work at these sites. Runs before anything is
        loaded."""

    def site_spec(self, site: Site, bits: Bits) -> SiteSpec | None:
        """The grid and granularity of one site; None where it stays in FP32."""
        grid = bits.activation_grid(site.name)
        return None if grid is None else SiteSpec(grid=grid)

    def weight_grid(self, parameter: str, module: nn.Module, bits: Bits) -> Grid | None:
        """The grid of one weight; None where it stays in FP32."""
        return bits.weight_grid(parameter, module)

    def weight_limits(self, model: PreTrainedModel, bits: Bits) -> Mapping[str, float]:
        """By parameter, the magnitude that its weights are clipped to before calibration; none by default."""
        return {}

    def plan(
        self,
        sites: Sequence[Site],
        sketches: Mapping[str, Sketch],
        weights: tuple[WeightQuant, ...],
        bits: Bits,
        calibration: Calibration,
    ) -> QuantPlan:
        """The plan for these sites, from sketches by site name and the weights' plan
        (:func:`plan_weights`)."""
        specs = ((site, self.site_spec(site, bits)) for site in sites)
        return QuantPlan(
            activations=tuple(
                plan_site(s, spec, sketches[s.name], calibration) for s, spec in specs if spec is not None
            ),
            weights=weights,
        )


def plan_site(site: Site, spec: SiteSpec, sketch: Sketch, calibration: Calibration) -> ActivationQuant:
    """One site's ranges. Raises ValueError where calibration has not seen it."""
    if isinstance(spec.grid, FloatGrid):
        return ActivationQuant(site=site.name, tap=site.tap, grid=spec.grid)
    if sketch.count == 0:
        raise ValueError(f"site {site.name} was never seen in calibration: it has no range")
    grid = calibration.grid(spec.grid)
    lo, hi, groups = group_ranges(calibration.range(sketch, grid), sketch, spec.granularity)
    return ActivationQuant(
        site=site.name,
        tap=site.tap,
        grid=grid,
        lo=tuple(lo.tolist()),
        hi=tuple(hi.tolist()),
        groups=() if len(lo) == 1 else tuple(groups.tolist()),
    )


def plan_weights(
    model: PreTrainedModel, method: Method, bits: Bits, calibration: Calibration
) -> tuple[WeightQuant, ...]:
    """Grid and ranges of every weight that the method and the bits quantize; of a tied weight once."""
    modules, tied = weighted_modules(model), tied_weights(model)
    bits = bits.with_tied(tied)
    limits = method.weight_limits(model, bits)
    grids = {name: method.weight_grid(name, module, bits) for name, module in modules.items()}
    asked = [
        (name, modules[name], grid, limits.get(name, math.inf), name in tied.values())
        for name, grid in grids.items()
        if grid is not None
    ]
    return tuple(side_by_side(partial(_plan_weight, bits, calibration), asked, model.device))


def check_weight_ranges(bits: Bits, calibration: Calibration) -> None:
    """Raises ValueError where the bits set how weights find their ranges and the estimator has a way of its
    own."""
    for name, value, allowed in (
        ("weight_granularity", bits.weight_granularity, "tensor"),
        ("weight_estimator", bits.weight_estimator, "minmax"),
    ):
        if calibration.ranges_weights and value != allowed:
            raise ValueError(
                f"bits.{name} must be {allowed} with {type(calibration).__name__}, which ranges each weight "
                f"as a whole by its own percentile; got {value!r}"
            )


def _plan_weight(
    bits: Bits, calibration: Calibration, weight_asked: tuple[str, nn.Module, Grid, float, bool]
) -> WeightQuant:
    parameter, module, grid, limit, tied = weight_asked
    if isinstance(grid, FloatGrid):
        return WeightQuant(parameter=parameter, grid=grid, axis=None)
    weight, axis = weight_of(module).clamp(-limit, limit), bits.weight_axis(module, tied)
    if calibration.ranges_weights:
        grid = calibration.grid(grid)
        sketch = Sketch(channels=1)
        sketch.update(weight.reshape(-1, 1))
        low, high = calibration.range(sketch, grid)
        return WeightQuant(parameter=parameter, grid=grid, axis=None, lo=(low,), hi=(high,))
    lo, hi = weight_range(weight, grid, bits.weight_estimator, axis)
    return WeightQuant(
        parameter=parameter, grid=grid, axis=axis, lo=tuple(lo.tolist()), hi=tuple(hi.tolist())
    )
