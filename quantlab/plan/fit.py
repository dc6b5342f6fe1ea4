"""Whether a plan fits a model: its modules, parameters, channels and numbers of ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from quantlab.network.architecture import all_sites
from quantlab.network.changed_attention import check_installed
from quantlab.network.taps import Tap
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, Ranges, WeightQuant

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_fits(model: PreTrainedModel, plan: QuantPlan) -> None:
    """Raises ValueError if a plan does not fit a model.

    A plan does not fit if it names modules, channels or parameters that the model lacks, if the number of
    ranges differs from the number of groups or slices, or if two items quantize one tensor.
    """
    check_weights_fit(model, plan)
    check_activations_fit(model, plan.activations)


def check_activations_fit(model: PreTrainedModel, activations: Iterable[ActivationQuant]) -> None:
    """The activations' part of :func:`check_fits`."""
    channels = {
        tap: site.channels for site in all_sites(model) for tap in (site.made_at, site.read_at) if tap
    }
    modules = {path for path, _ in model.named_modules()}
    strange: list[str] = []
    sites: dict[Tap, str] = {}
    for item in activations:
        width = channels.get(item.tap, 0)
        known = item.tap.module in modules and len(item.groups) in (0, width)
        if item.split and max(item.split.columns, default=0) >= width:
            known = False
        if not known:
            strange.append(item.site)
        elif item.grid.ranged:
            _check_ranges(item.site, item.lo, item.hi, max(item.groups, default=0) + 1)
            if item.group_bits and len(item.group_bits) != len(item.lo):
                raise ValueError(
                    f"the plan has {len(item.group_bits)} numbers of bits for the {len(item.lo)} "
                    f"groups of {item.site}"
                )
        if item.tap in sites:
            raise ValueError(
                f"the plan quantizes the {item.tap.at} of {item.tap.module} twice, as "
                f"{sites[item.tap]} and as {item.site}: keep one of them"
            )
        sites[item.tap] = item.site
    _check_known(strange)


def check_weights_fit(model: PreTrainedModel, plan: QuantPlan) -> None:
    """The weights', transforms' and edits' part of :func:`check_fits`; and whether the model computes the
    attention that its config asks for."""
    check_installed(model)
    shapes = {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}
    named = [*(edit.parameter for edit in plan.edits), *plan.weight_bases]
    strange = [name for name in named if name not in shapes]
    seen: set[str] = set()
    for weight in plan.weights:
        shape = shapes.get(weight.parameter)
        if (
            shape is None
            or (weight.integers is not None and weight.integers.tensor.shape != shape)
            or (weight.wide and (len(shape) != 2 or max(weight.wide) >= shape[1]))
        ):
            strange.append(weight.parameter)
        elif weight.grid.ranged:
            needed = _ranges(weight, shape)
            if needed is None or (weight.axis is not None and needed != len(weight.lo)):
                strange.append(weight.parameter)
            else:
                _check_ranges(weight.parameter, weight.lo, weight.hi, needed)
        if weight.parameter in seen:
            raise ValueError(f"the plan quantizes {weight.parameter} twice: keep one of them")
        seen.add(weight.parameter)
    _check_known(strange)


def _ranges(weight: WeightQuant, shape: torch.Size) -> int | None:
    """The number of ranges that a parameter of this shape needs; None if it has no such axis or groups."""
    if weight.axis is None:
        return 1
    if not -len(shape) <= weight.axis < len(shape):
        return None
    if weight.group is None:
        return shape[weight.axis]
    fits = len(shape) == 2 and weight.axis == 0 and shape[1] % weight.group == 0
    return shape.numel() // weight.group if fits else None


def _check_ranges(name: str, lo: Ranges, hi: Ranges, needed: int) -> None:
    if not len(lo) == len(hi) == needed:
        raise ValueError(
            f"the plan has {len(lo)} lower and {len(hi)} upper ends of ranges for {name}, not {needed}"
        )


def _check_known(strange: Sequence[str]) -> None:
    if strange:
        names = ", ".join(strange[:3])
        raise ValueError(f"the plan is of another model: this one has no {names} as the plan has it")
