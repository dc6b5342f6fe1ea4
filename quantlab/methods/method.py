"""What a quantization method is: a pure function from what calibration saw to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlab.calibration.estimators import Calibration
from quantlab.machine.parallel import side_by_side
from quantlab.methods.bits import Bits, tied_weights, weight_of, weighted_modules
from quantlab.network.sites import Site
from quantlab.plan.edits import Edit
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.granularity import PER_TENSOR, Granularity
from quantlab.quant.grid import AffineGrid, Grid
from quantlab.quant.grouping import allocate_bits
from quantlab.quant.ranges import group_ranges, weight_range
from quantlab.quant.sketch import Sketch
from quantlab.quant.split import Split

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

FP32 = QuantPlan()
Splits = Mapping[str, Split]  # by site
NO_SPLITS: Splits = MappingProxyType({})
WeightPlanner = Callable[[Tensor], WeightQuant]


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """How a method wants a site quantized, before any range is known."""

    grid: Grid
    granularity: Granularity = PER_TENSOR
    allocate_bits: bool = False  # bits by group, with the grid's as their mean over the channels


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

    def edits(self, model: PreTrainedModel, bits: Bits) -> tuple[Edit, ...]:
        """Changes of weights before anything else is decided; none by default."""
        return ()

    def activations(
        self,
        sites: Sequence[Site],
        sketches: Mapping[str, Sketch],
        bits: Bits,
        calibration: Calibration,
        splits: Splits = NO_SPLITS,
    ) -> tuple[ActivationQuant, ...]:
        """The quantizers of these sites, from sketches and splits by site name."""
        specs = ((site, self.site_spec(site, bits)) for site in sites)
        return tuple(
            plan_site(s, spec, sketches[s.name], calibration, splits.get(s.name))
            for s, spec in specs
            if spec is not None
        )


def plan_site(
    site: Site, spec: SiteSpec, sketch: Sketch, calibration: Calibration, split: Split | None = None
) -> ActivationQuant:
    """One site's ranges. Raises ValueError where calibration has not seen it."""
    grid = calibration.grid(spec.grid)
    if not isinstance(grid, AffineGrid):
        return ActivationQuant(site=site.name, tap=site.tap, grid=grid, split=split)
    if sketch.count == 0:
        raise ValueError(f"site {site.name} was never seen in calibration: it has no range")
    lo, hi, groups = group_ranges(calibration.range(sketch, grid), sketch, spec.granularity)
    if split is not None:
        lo, hi = split.narrowed(lo, hi)
    group_bits: tuple[int, ...] = ()
    if spec.allocate_bits and len(lo) > 1:
        widths = hi.clamp(min=0) - lo.clamp(max=0)
        group_bits = allocate_bits(widths, torch.bincount(groups), grid.bits, most=max(8, grid.bits))
    return ActivationQuant(
        site=site.name,
        tap=site.tap,
        grid=grid,
        lo=tuple(lo.tolist()),
        hi=tuple(hi.tolist()),
        groups=() if len(lo) == 1 else tuple(groups.tolist()),
        split=split,
        group_bits=group_bits,
    )


def plan_weights(
    model: PreTrainedModel,
    method: Method,
    bits: Bits,
    calibration: Calibration,
    base: QuantPlan = FP32,
    wide: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> tuple[WeightQuant, ...]:
    """Grid and ranges of every weight that the method and the bits quantize; of a tied weight once.

    The weights are those after the edits of ``base``, in its bases. The columns ``wide``, by parameter, stay
    in FP16 and have no part in the ranges.
    """

    def planned(asked: tuple[str, WeightPlanner]) -> WeightQuant:
        name, plan = asked
        value, columns = base.in_basis(name, weight_of(modules[name])), wide.get(name, ())
        if not columns:
            return plan(value)
        return replace(plan(value.index_fill(1, torch.tensor(columns, device=value.device), 0)), wide=columns)

    modules = weighted_modules(model)
    planners = weight_planners(model, method, bits, calibration)
    return tuple(side_by_side(planned, list(planners.items()), model.device))


def weight_planners(
    model: PreTrainedModel, method: Method, bits: Bits, calibration: Calibration
) -> dict[str, WeightPlanner]:
    """By name of each weight that is quantized, the function from its value, edited and in its basis, to its
    quantizer."""
    modules, tied = weighted_modules(model), tied_weights(model)
    bits = bits.with_tied(tied)
    grids = {name: method.weight_grid(name, module, bits) for name, module in modules.items()}
    return {
        name: partial(
            _plan_weight,
            bits,
            calibration,
            name,
            grid,
            bits.weight_axis(modules[name], name in tied.values()),
            bits.group_of(modules[name]),
        )
        for name, grid in grids.items()
        if grid is not None
    }


def check_weight_ranges(bits: Bits, calibration: Calibration) -> None:
    """Raises ValueError where the bits set how weights find their ranges and the estimator has a way of its
    own."""
    for name, value, allowed in (
        ("weight_granularity", bits.weight_granularity, "tensor"),
        ("weight_estimator", bits.weight_estimator, "minmax"),
        ("weight_group", bits.weight_group, None),
        ("embedding_granularity", bits.embedding_granularity, None),
    ):
        if calibration.ranges_weights and value != allowed:
            raise ValueError(
                f"bits.{name} must be {allowed or 'null'} with {type(calibration).__name__}, which ranges "
                f"each weight as a whole by its own percentile; got {value!r}"
            )


def _plan_weight(
    bits: Bits,
    calibration: Calibration,
    parameter: str,
    grid: Grid,
    axis: int | None,
    group: int | None,
    value: Tensor,
) -> WeightQuant:
    if not isinstance(grid, AffineGrid):
        return WeightQuant(parameter=parameter, grid=grid, axis=None)
    if calibration.ranges_weights:
        sketch = Sketch(channels=1)
        sketch.update(value.reshape(-1, 1))
        own = calibration.grid(grid)
        assert isinstance(own, AffineGrid)
        low, high = calibration.range(sketch, own)
        return WeightQuant(parameter=parameter, grid=own, axis=None, lo=(low,), hi=(high,))
    if group is not None:
        ends = weight_range(value.reshape(-1, group), grid, bits.weight_estimator, 0)
        low_ends, high_ends = (FrozenTensor(end.reshape(len(value), -1)) for end in ends)
        return WeightQuant(parameter=parameter, grid=grid, axis=0, lo=low_ends, hi=high_ends, group=group)
    lo, hi = weight_range(value, grid, bits.weight_estimator, axis)
    return WeightQuant(
        parameter=parameter, grid=grid, axis=axis, lo=tuple(lo.tolist()), hi=tuple(hi.tolist())
    )
