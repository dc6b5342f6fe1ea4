"""Quantization-aware training: the network learns through its own quantization, and ranges with it.

Bondarenko et al. 2021 (arXiv 2109.12948, section 5) with the gradients of LSQ+ (arXiv 2004.09576).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from quantlab.calibration.estimators import Calibration
from quantlab.config.checks import at_least, one_of
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.basis import Basis
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid
from quantlab.rounding.rounding import Rounding
from quantlab.splits.split import SplitMethod
from quantlab.training.learned_range import LearnedRange, straight_through
from quantlab.training.training import Course, Plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = ActivationQuant | WeightQuant


@dataclass(frozen=True, kw_only=True)
class Qat(Plain):
    """Trains through the trial's own plan: its grids, ranges, groups and bases, found by calibration.

    Weights and ranges learn; zero points are floats until the end. Grids without ranges (a scale for each
    token, floats) pass gradients straight through. The learned plan is stored with the checkpoint, and a
    trial with the same settings runs it as it is.
    """

    range_learning_rate: float = 3e-2  # of ranges, in shares of them; 0: they stay where calibration put them
    factor: bool = True  # LSQ's 1 / sqrt(N Q) on the gradients of ranges

    simulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("training.range_learning_rate", self.range_learning_rate, 0)
        one_of("training.factor", self.factor, (True, False))

    def check_slots(self, calibration: Calibration, split: SplitMethod, rounding: Rounding) -> None:
        for name, choice, plain in (("split", split, SplitMethod), ("rounding", rounding, Rounding)):
            if type(choice) is not plain:
                allowed = "none" if plain is SplitMethod else "nearest"
                raise ValueError(
                    f"training=qat takes {name}={allowed}, got {type(choice).__name__}: it learns weights "
                    "and ranges, which this would replace"
                )
        if calibration.ranges_weights:
            raise ValueError(
                f"training=qat learns ranges of weights, which {type(calibration).__name__} finds in a way "
                "of its own: take another calibration"
            )

    @contextmanager
    def course(self, model: PreTrainedModel, sites: Sequence[Site], plan: QuantPlan) -> Iterator[Course]:
        network = LearningNetwork(model, plan, self.factor)
        ranges = [each for learned in network.ranges.values() for each in learned.parameters()]
        groups = [{"params": ranges, "lr": self.range_learning_rate, "weight_decay": 0.0}]
        with network.tapped():
            yield Course(
                forward=network.forward,
                groups=groups if ranges and self.range_learning_rate else (),
                plan=network.plan,
            )


class LearningNetwork:
    """A model that runs quantized by a plan whose ranges have gradients.

    The plan keeps nothing wide and rounds to the nearest. Raises ValueError for groups with bits of their
    own.
    """

    def __init__(self, model: PreTrainedModel, plan: QuantPlan, factor: bool = True) -> None:
        _require_learnable(plan)
        self.model, self.start = model, plan
        items: list[Item] = [*plan.activations, *plan.weights]
        self.ranges = {
            _name(item): self._range(item, item.grid, factor)
            for item in items
            if isinstance(item.grid, AffineGrid)
        }

    def _range(self, item: Item, grid: AffineGrid, factor: bool) -> LearnedRange:
        if isinstance(item, ActivationQuant):
            scale, zero_point = item.parameters()
        else:
            scale, zero_point = item.parameters(self._value(item.parameter))
        device = self.model.device
        return LearnedRange(grid, scale.to(device), zero_point.to(device), factor)

    def forward(self, **inputs: Any) -> Any:
        """The model's output for the inputs."""
        return functional_call(self.model, self.parameters(), (), inputs)

    def tapped(self) -> Any:
        """Quantizes activations until the exit of the context."""
        functions: dict[Any, TensorFunction] = {
            item.tap: self._activation(item, self.start.site_bases.get(item.site))
            for item in self.start.activations
        }
        return tapped(self.model, functions)

    def parameters(self) -> dict[str, Tensor]:
        """The parameters that stand for the model's own, with gradients to these and to the ranges."""
        quantized: dict[str, Tensor] = {}
        seen: set[int] = set()
        for item in self.start.weights:
            parameter = self.model.get_parameter(item.parameter)
            if id(parameter) in seen:  # two names may stand for one parameter
                continue
            seen.add(id(parameter))
            value, basis = self._value(item.parameter), self.start.weight_bases.get(item.parameter)
            snapped = self._weight(item, value, basis)
            quantized[item.parameter] = self._as_stored(item.parameter, snapped)
            bias = getattr(self._module(item.parameter), "bias", None)
            if basis is not None and basis.shift is not None and isinstance(bias, nn.Parameter):
                gained = nn.functional.linear(basis.shift.tensor.to(value), value - snapped)
                quantized[f"{item.parameter.rpartition('.')[0]}.bias"] = bias + gained
        for name in {edit.parameter for edit in self.start.edits} - quantized.keys():
            quantized[name] = self._as_stored(name, self._value(name))
        return quantized

    def plan(self) -> QuantPlan:
        """The plan with the ranges as they are now."""
        return replace(
            self.start,
            activations=tuple(self._learned_activation(item) for item in self.start.activations),
            weights=tuple(self._learned_weight(item) for item in self.start.weights),
        )

    def _module(self, parameter: str) -> nn.Module:
        return self.model.get_submodule(parameter.rpartition(".")[0])

    def _value(self, parameter: str) -> Tensor:
        """A parameter after its edits, as the plan sees it: that of GPT-2's Conv1D as a Linear's."""
        return self.start.edited(parameter, self._as_stored(parameter, self.model.get_parameter(parameter)))

    def _as_stored(self, parameter: str, value: Tensor) -> Tensor:
        """The weight of a Conv1D transposed, either way."""
        conv = isinstance(self._module(parameter), Conv1D) and parameter.endswith("weight")
        return value.T if conv else value

    def _activation(self, item: ActivationQuant, basis: Basis | None) -> TensorFunction:
        shape = (-1, *[1] * (-1 - item.tap.axis))
        groups = torch.tensor(item.groups, device=self.model.device) if item.groups else None
        learned = self.ranges.get(_name(item))
        fixed = item.function(self.model.device)

        def quantize(x: Tensor) -> Tensor:
            based = x if basis is None else basis.forward(x)
            if learned is not None:
                snapped = learned.snap(based, shape if item.groups else (), groups)
            else:
                snapped = straight_through(based, fixed(based.detach().clone()))
            return snapped if basis is None else basis.back(snapped)

        return quantize

    def _weight(self, item: WeightQuant, value: Tensor, basis: Basis | None) -> Tensor:
        based = value if basis is None else basis.weight(value)
        learned = self.ranges.get(_name(item))
        if learned is not None:
            shaped = item.shaped(based)
            snapped = learned.snap(shaped, tuple(learned.scale.shape)).reshape(value.shape)
        else:
            snapped = straight_through(based, item.snap(based.detach()))
        return snapped if basis is None else basis.weight_back(snapped)

    def _learned(self, item: Item) -> LearnedRange | None:
        learned = self.ranges.get(_name(item))
        return learned if learned is not None and learned.moved else None

    def _learned_activation(self, item: ActivationQuant) -> ActivationQuant:
        if (learned := self._learned(item)) is None:
            return item
        lo, hi = learned.ends()
        return replace(item, lo=tuple(lo.flatten().tolist()), hi=tuple(hi.flatten().tolist()))

    def _learned_weight(self, item: WeightQuant) -> WeightQuant:
        if (learned := self._learned(item)) is None:
            return item
        lo, hi = (end.cpu() for end in learned.ends())
        if item.group is not None:
            lo, hi = (end[..., 0] for end in (lo, hi))
            return replace(item, lo=FrozenTensor(lo), hi=FrozenTensor(hi))
        return replace(item, lo=tuple(lo.flatten().tolist()), hi=tuple(hi.flatten().tolist()))


def _name(item: Item) -> str:
    return f"site {item.site}" if isinstance(item, ActivationQuant) else f"weight {item.parameter}"


def _require_learnable(plan: QuantPlan) -> None:
    for item in plan.activations:
        if item.group_bits:
            raise ValueError(
                f"training=qat takes groups of the same bits: those of {item.site} have bits of their own"
            )
