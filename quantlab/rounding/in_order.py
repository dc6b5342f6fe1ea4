"""Roundings that take the Linears in the network's order, with statistics of what each of them reads."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantlab.calibration.prefix import Network, Step, Sum, steps_of, walk
from quantlab.calibration.probe import Probe, narrow_view, observe
from quantlab.cli.progress import progress
from quantlab.engines.insert import edited_weights, quantized_weights, quantizer
from quantlab.machine.parallel import side_by_side
from quantlab.network.attention import TensorFunction
from quantlab.network.taps import Tap
from quantlab.plan.edits import Add, Edit
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import WeightQuant
from quantlab.quant.basis import Basis
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid
from quantlab.rounding.rounding import Rounding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 512  # outputs of a Linear that are rounded together: threads share its rows


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a Linear's weight, (outputs, channels), in the basis that it is quantized in.

    ``scale`` and ``zero_point`` have the weight's shape.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    grid: AffineGrid

    @property
    def nearest(self) -> Tensor:
        """The nearest integers, as whole numbers in FP32."""
        return self.grid.integers(self.weight, self.scale, self.zero_point)

    def values(self, integers: Tensor) -> Tensor:
        """What integers stand for."""
        return (integers - self.zero_point) * self.scale

    def split(self) -> list[Rows]:
        """Parts of at most :data:`ROWS` rows."""
        parts = zip(*(torch.split(x, ROWS) for x in (self.weight, self.scale, self.zero_point)), strict=True)
        return [Rows(weight, scale, zero_point, self.grid) for weight, scale, zero_point in parts]


@dataclass(frozen=True, kw_only=True)
class InOrder(Rounding):
    """Chooses integers for the weights of Linears, in the network's order.

    Its statistics are of what a Linear reads in the network whose weights and sites before it are quantized.
    Embeddings, convolutions and weights that several modules share are rounded to nearest. Columns that a
    split keeps wide have no integers, and no part in the statistics.
    """

    compares: ClassVar[bool] = False  # whether statistics are of the original network's inputs as well

    @property
    def behind_fp32(self) -> bool:
        """Whether statistics are of what a Linear reads in the original network instead."""
        return False

    @abstractmethod
    def statistic(self, batch: int, *x: Tensor) -> Sum:
        """The statistic of one batch, by its number. Those of all batches are added.

        There is one x (elements, channels), what the Linears read. If the rounding ``compares`` there are
        two, and the first is what they read in the original network. All are in the weights' basis.
        """

    @abstractmethod
    def rounder(self, seen: Any) -> Callable[[Rows], Tensor]:
        """The function that returns the integers of rows, for weights that read what ``seen`` is of."""

    def bias_gain(self, seen: Any, rows: Rows, integers: Tensor) -> Tensor | None:
        """What the outputs' biases gain, (outputs,); None if they stay as they are."""
        return None

    def round(self, probe: Probe, plan: QuantPlan) -> QuantPlan:
        """The plan with the integers of its Linears' weights, and with the edits of their biases."""
        chosen, edits = dict[str, WeightQuant](), list[Edit]()
        model, asked = probe.model, roundable(probe, plan)
        if not asked:
            return plan
        with ExitStack() as stack:
            stack.enter_context(edited_weights(model, plan))
            steps = list(_steps(probe, plan, set(asked)))
            networks = [Network(model)]
            if not self.behind_fp32:
                original = [Network(copy.deepcopy(model))] if self.compares else []
                networks = [*original, Network(model, site_functions(probe, plan))]
                rest = tuple(item for item in plan.weights if item.parameter not in asked)
                stack.enter_context(quantized_weights(model, replace(plan, weights=rest, edits=())))

            def statistic(step: Step, batch: int, *x: Tensor) -> Sum:
                name = f"{step.linears[0]}.weight"
                basis, narrow = plan.weight_bases.get(name), narrow_columns(asked[name], x[0].shape[1])
                based = x if basis is None else tuple(map(basis.forward, x))
                if asked[name].wide:
                    based = tuple(one[:, narrow] for one in based)
                return self.statistic(batch, *(2 * based if self.compares and len(x) == 1 else based))

            passes = stack.enter_context(
                closing(walk(networks, probe.batches, steps, statistic, probe.count_padding))
            )
            for _ in progress(steps, "rounding"):
                step, seen = next(passes)
                items, gains = self._rounded(model, step, seen, asked, plan)
                chosen |= {item.parameter: item for item in items}
                edits += gains
                if not self.behind_fp32:
                    now = replace(plan, weights=tuple(items), edits=tuple(gains))
                    stack.enter_context(quantized_weights(model, now))
        weights = tuple(chosen.get(item.parameter, item) for item in plan.weights)
        return replace(plan, weights=weights, edits=(*plan.edits, *edits))

    def _rounded(
        self,
        model: PreTrainedModel,
        step: Step,
        seen: Sum,
        asked: dict[str, WeightQuant],
        plan: QuantPlan,
    ) -> tuple[list[WeightQuant], list[Edit]]:
        """The weights of a step with their integers, and the edits of their biases."""
        items = [asked[f"{path}.weight"] for path in step.linears]
        parts = [part for item in items for part in rows_of(model, item, plan).split()]
        choose = self.rounder(seen)
        integers = list(side_by_side(choose, parts, model.device))
        gains = [self.bias_gain(seen, rows, found) for rows, found in zip(parts, integers, strict=True)]
        rounded, edits, at = list[WeightQuant](), list[Edit](), 0
        for path, item in zip(step.linears, items, strict=True):
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            end = at - (-linear.out_features // ROWS)
            found = torch.cat(integers[at:end])
            if item.wide:
                narrow, whole = narrow_columns(item, linear.in_features), linear.weight.new_zeros
                found = whole(linear.weight.shape).index_copy(1, narrow, found)
            rounded.append(replace(item, integers=frozen(found, item.grid)))
            gained = [gain for gain in gains[at:end] if gain is not None]
            if gained and linear.bias is not None:
                edits.append(Add(parameter=f"{path}.bias", values=FrozenTensor(torch.cat(gained).float())))
            at = end
        return rounded, edits


def roundable(probe: Probe, plan: QuantPlan) -> dict[str, WeightQuant]:
    """The weights whose integers can be chosen, by name: a Linear's own, on an integer grid."""
    linears = {f"{path}.weight" for path, m in probe.model.named_modules() if isinstance(m, nn.Linear)}
    return {
        item.parameter: item
        for item in plan.weights
        if item.parameter in linears - probe.tied and isinstance(item.grid, AffineGrid)
    }


def rows_of(model: PreTrainedModel, item: WeightQuant, plan: QuantPlan) -> Rows:
    """A parameter of a model whose weights have their edits, in its basis, without its wide columns."""
    value, basis = model.get_parameter(item.parameter).data, plan.weight_bases.get(item.parameter)
    value = value if basis is None else basis.weight(value)
    scale, zero_point = (
        x.expand(item.shaped(value).shape).reshape(value.shape) for x in item.parameters(value)
    )
    assert isinstance(item.grid, AffineGrid)
    narrow = narrow_columns(item, value.shape[1]).to(value.device)
    value, scale, zero_point = (x.index_select(1, narrow) for x in (value, scale, zero_point))
    return Rows(value, scale, zero_point, item.grid)


def narrow_columns(item: WeightQuant, columns: int) -> Tensor:
    """The columns of a weight that are on its grid, ascending."""
    return torch.tensor(sorted(set(range(columns)) - set(item.wide)))


def frozen(integers: Tensor, grid: Any) -> FrozenTensor:
    """Whole numbers of a grid in the fewest bytes."""
    kinds = (torch.int8, torch.uint8, torch.int16, torch.int32)
    fitting = (kind for kind in kinds if _holds(kind, grid.q_min) and _holds(kind, grid.q_max))
    return FrozenTensor(integers.to(next(fitting)))


def _holds(kind: torch.dtype, number: int) -> bool:
    return torch.iinfo(kind).min <= number <= torch.iinfo(kind).max


def site_functions(probe: Probe, plan: QuantPlan) -> dict[Tap, TensorFunction]:
    """The quantizers of all sites, by tap, with the ranges that calibration in the original network gives."""
    bases, sketches = plan.site_bases, dict(probe.sketches)
    items = {site.name: probe.plan_site(site, sketches[site.name]) for site in probe.sites}
    splits = {name: item.split for name, item in items.items() if item is not None and item.split}
    views = {name: narrow_view(bases.get(name), splits.get(name)) for name in {*bases, *splits}}
    again = [site for site in probe.sites if site.name in views]
    if again:
        tokens = any(sketch.tokens for sketch in sketches.values())
        seen = observe(probe.model, again, probe.batches, probe.count_padding, views=views, tokens=tokens)
        items |= {site.name: probe.plan_site(site, seen[site.name]) for site in again}
    return {
        item.tap: quantizer(item, probe.model.device, item.tap.overwrites, bases.get(item.site))
        for item in items.values()
        if item is not None
    }


def _steps(probe: Probe, plan: QuantPlan, asked: set[str]) -> Iterator[Step]:
    """The network's steps with the Linears that are asked for, apart for each basis of their weights."""
    for step in steps_of(probe.model, probe.batches[0]):
        by_basis: dict[Basis | None, list[str]] = {}
        for path in step.linears:
            if f"{path}.weight" in asked:
                by_basis.setdefault(plan.weight_bases.get(f"{path}.weight"), []).append(path)
        yield from (Step(tuple(linears), step.layer) for linears in by_basis.values())
