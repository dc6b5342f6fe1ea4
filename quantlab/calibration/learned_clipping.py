"""Learned clipping: how far the ranges of weights shrink, by gradient on the error of the outputs.

OmniQuant's learnable weight clipping (Shao et al. 2024, arXiv 2308.13137, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlab.calibration.estimators import MinMax
from quantlab.config.checks import above, whole
from quantlab.machine.parallel import side_by_side
from quantlab.plan.quantizers import WeightQuant, weight_ranges
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import SMALLEST_SCALE, AffineGrid

if TYPE_CHECKING:
    from quantlab.calibration.probe import Probe
    from quantlab.plan.plan import QuantPlan

START = 4.0  # sigmoid(4) = 0.982, as in the authors' code
SMALLEST_ERROR = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class LearnedClipping(MinMax):
    """Min-max; then each range [lo, hi] of a Linear's weight becomes ``[sigmoid(b) lo, sigmoid(g) hi]``.

    b and g are learned on the Linear's outputs over ``input_rows`` of its inputs, drawn from the FP32
    network by ``seed``: ``epochs`` passes of Adam, ``batch_rows`` at a time. Where the result is no better on
    these rows, a row of the weight keeps its range. So do weights that no selected site feeds, or that
    several modules share.
    """

    epochs: int = 20
    learning_rate: float = 1e-2
    input_rows: int = 512
    batch_rows: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("calibration.epochs", self.epochs, 0)
        above("calibration.learning_rate", self.learning_rate, 0)
        whole("calibration.input_rows", self.input_rows, 1)
        whole("calibration.batch_rows", self.batch_rows, 1)

    def clipped(self, probe: Probe, plan: QuantPlan) -> QuantPlan:
        own = {w.parameter: w for w in plan.weights if w.parameter not in probe.tied}
        names = {site: [f"{path}.weight" for path in paths] for site, paths in probe.readers.items()}
        read = {site: [name for name in found if name in own] for site, found in names.items()}
        sites = [site for site in probe.sites if read.get(site.name)] if self.epochs else []
        if not sites:
            return plan
        rows = probe.rows(sites, self.input_rows, self.seed or 0)

        def fit(asked: tuple[str, str]) -> WeightQuant:
            site, name = asked
            basis, item = plan.weight_bases.get(name), own[name]
            value = plan.in_basis(name, probe.model.get_parameter(name).data)
            wide = torch.tensor(item.wide, dtype=torch.long, device=value.device)
            x = rows[site] if basis is None else basis.forward(rows[site])
            return learned_ranges(item, value.index_fill(1, wide, 0), x, self)

        asked = [(site.name, name) for site in sites for name in read[site.name]]
        found = {item.parameter: item for item in side_by_side(fit, asked, probe.model.device)}
        return replace(plan, weights=tuple(found.get(item.parameter, item) for item in plan.weights))


def learned_ranges(
    item: WeightQuant, weight: Tensor, inputs: Tensor, settings: LearnedClipping
) -> WeightQuant:
    """The quantizer with learned ranges, from the weight (outputs, channels) and its inputs (rows,
    channels).

    A row's loss is divided by its error with the ranges of ``item``. A float grid has none and stays.
    """
    grid = item.grid
    if not isinstance(grid, AffineGrid):
        return item
    start = _errors(item, weight, inputs)
    lo, hi = _ends(item, weight)
    strengths = torch.full((2, *lo.shape), START, device=weight.device).requires_grad_()
    optimizer = torch.optim.Adam([strengths], lr=settings.learning_rate)
    drawn = torch.Generator().manual_seed(settings.seed or 0)
    shaped, share = item.shaped(weight), 1 / start.float().clamp(min=SMALLEST_ERROR)
    with torch.enable_grad():
        for _ in range(settings.epochs):
            for some in torch.split(torch.randperm(len(inputs), generator=drawn), settings.batch_rows):
                below, above = torch.sigmoid(strengths)
                error = (snapped(shaped, below * lo, above * hi, grid) - shaped).reshape(weight.shape)
                loss = ((inputs[some] @ error.T).square().mean(0) * share).sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    below, above = torch.sigmoid(strengths.detach())
    learned = with_ends(item, below * lo, above * hi)
    better = _errors(learned, weight, inputs) < start
    if item.axis is None:
        return learned if bool(better.all()) else item
    kept = better.reshape(-1, *[1] * (lo.ndim - 1))
    return with_ends(item, torch.where(kept, below * lo, lo), torch.where(kept, above * hi, hi))


def with_ends(item: WeightQuant, lo: Tensor, hi: Tensor) -> WeightQuant:
    """The quantizer with other ends of its ranges, which are shaped to broadcast against the weight."""
    if item.group is not None:
        return replace(item, lo=FrozenTensor(lo.squeeze(-1)), hi=FrozenTensor(hi.squeeze(-1)))
    return replace(item, lo=tuple(lo.flatten().tolist()), hi=tuple(hi.flatten().tolist()))


def _ends(item: WeightQuant, weight: Tensor) -> tuple[Tensor, Tensor]:
    lo, hi = weight_ranges(item, weight.ndim)
    return lo.to(weight), hi.to(weight)


def snapped(weight: Tensor, lo: Tensor, hi: Tensor, grid: AffineGrid) -> Tensor:
    """:meth:`AffineGrid.snap` with a gradient to the ends: rounding passes it on."""
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    width = torch.maximum(-lo, hi) if grid.symmetric else hi - lo
    scale = (width / grid.q_max).clamp(min=SMALLEST_SCALE)
    zero_point = torch.zeros_like(scale) if grid.symmetric else _rounded(-lo / scale)
    integers = (_rounded(weight / scale) + zero_point).clamp(grid.q_min, grid.q_max)
    return (integers - zero_point) * scale


def _rounded(x: Tensor) -> Tensor:
    return x + (x.detach().round() - x.detach())


def _errors(item: WeightQuant, weight: Tensor, inputs: Tensor) -> Tensor:
    """The mean squared error of each output, (outputs,), float64; of one range for all, their sum, (1,)."""
    errors = (inputs @ (item.snap(weight) - weight).T).double().square().mean(0)
    return errors.sum()[None] if item.axis is None else errors
