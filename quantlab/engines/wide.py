"""Columns that a split keeps wide for one batch only: the Linears that read them multiply FP16 weights there.

A site's quantizer notes the columns on its result. Columns that calibration has frozen need none of this:
their weights are in FP16 already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from quantlab.plan.plan import QuantPlan
from quantlab.quant.basis import Basis
from quantlab.quant.split import FP16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDE = "_quantlab_wide"


@dataclass(frozen=True, eq=False)
class Wide:
    """The wide columns of a tensor and their values, in the basis of the tensor's site."""

    columns: Tensor  # long, (columns,)
    values: Tensor  # (..., columns)


def note_wide(y: Tensor, columns: Tensor, values: Tensor) -> None:
    """Notes a tensor's wide columns on it."""
    if len(columns):
        setattr(y, WIDE, Wide(columns, values))


class FloatForward:
    """A Linear's forward in FP32, where wide columns multiply the weight that is not quantized, in FP16.

    ``original`` is that weight, (outputs, inputs), and ``basis`` the one in which it is quantized. What is
    computed of them is kept once it is needed.
    """

    def __init__(self, linear: nn.Linear, original: Tensor, basis: Basis | None):
        self.linear, self.original, self.basis = linear, original, basis
        self._original_in_basis: Tensor | None = None
        self._difference: Tensor | None = None

    def original_in_basis(self) -> Tensor:
        """The weight before it was quantized, in the basis in which it is quantized."""
        if self._original_in_basis is None:
            self._original_in_basis = self._based(self.original)
        return self._original_in_basis

    def _based(self, weight: Tensor) -> Tensor:
        return weight if self.basis is None else self.basis.weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        y = nn.Linear.forward(self.linear, x)
        wide: Wide | None = getattr(x, WIDE, None)
        if wide is None:
            return y
        if self._difference is None:
            quantized = self._based(self.linear.weight.data)
            self._difference = FP16.snap(self.original_in_basis()) - quantized
        return y + nn.functional.linear(wide.values, self._difference.index_select(1, wide.columns))


def float_forwards(model: PreTrainedModel, plan: QuantPlan) -> dict[str, FloatForward]:
    """The forward of every Linear whose weight the plan quantizes, by path.

    The model has its FP32 weights.
    """
    linears = {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantized = {weight.parameter for weight in plan.weights}
    found = {}
    for name in quantized & linears.keys():
        original, basis = plan.edited(name, linears[name].weight.data), plan.weight_bases.get(name)
        found[name.removesuffix(".weight")] = FloatForward(linears[name], original, basis)
    return found


@contextmanager
def wide_linears(forwards: Mapping[str, FloatForward]) -> Iterator[None]:
    """Gives the Linears these forwards until the exit, unless they have others."""
    changed = []
    try:
        for forward in forwards.values():
            if "forward" not in vars(forward.linear):
                vars(forward.linear)["forward"] = forward
                changed.append(forward.linear)
        yield
    finally:
        for linear in changed:
            vars(linear).pop("forward", None)
