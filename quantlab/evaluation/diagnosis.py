"""A table of every quantized tensor: its range, its extremes, and the noise of its quantization alone."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from math import fsum
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from quantlab.engines.insert import quantizer
from quantlab.machine.parallel import side_by_side
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.sketch import Sketch
from quantlab.quant.sqnr import energy, ratio_db, sqnr_db
from quantlab.tasks.batching import Batch, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def site_table(
    model: PreTrainedModel,
    plan: QuantPlan,
    sketches: Mapping[str, Sketch],
    sqnr: Mapping[str, float],
    network: str,
) -> pd.DataFrame:
    """Returns a row for each quantized tensor: grid, ranges, extremes, kurtosis, SQNR in dB.

    A site's numbers are of the network that calibrated it, named ``network``: extremes and kurtosis of its
    sketch, ``sqnr`` of :func:`site_sqnr_db`. A weight's numbers are of the checkpoint's values after the
    plan's edits, in the weight's basis.
    """
    rows = [_activation_row(item, sketches[item.site], sqnr[item.site], network) for item in plan.activations]
    weights = [
        (item, plan.in_basis(item.parameter, model.get_parameter(item.parameter).data))
        for item in plan.weights
    ]
    return pd.DataFrame([*rows, *side_by_side(_weight_row, weights, model.device)])


def site_sqnr_db(
    model: PreTrainedModel,
    plan: QuantPlan,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    through: bool = False,
) -> dict[str, float]:
    """Returns the SQNR of each of the plan's sites in dB: ``10 log10(sum x^2 / sum (x - Q(x))^2)``.

    The sums are over all batches, without padding. ``x`` is the site's tensor in the model as it is, or, if
    ``through``, with all earlier sites quantized. One pass serves all sites.
    """
    by_name = {site.name: site for site in sites}
    signal: dict[str, list[float]] = defaultdict(list)
    noise: dict[str, list[float]] = defaultdict(list)
    # Batches run side by side in threads. Each thread keeps the mask of its batch for the functions below.
    running = threading.local()

    def measure(site: Site, snap: TensorFunction, x: Tensor) -> Tensor:
        signal[site.name].append(unpadded_energy(x, running.mask, site))
        snapped = snap(x)
        noise[site.name].append(unpadded_energy(x - snapped, running.mask, site))
        return snapped if through else x

    @torch.inference_mode()
    def run(batch: Batch) -> None:
        inputs = on_device(batch, model.device)
        mask = inputs.get("attention_mask")
        running.mask = None if mask is None else mask.bool()
        model(**inputs)

    functions = {
        item.tap: partial(
            measure,
            by_name[item.site],
            quantizer(item, model.device, basis=plan.site_bases.get(item.site)),
        )
        for item in plan.activations
    }
    with tapped(model, functions):
        for _ in side_by_side(run, batches, model.device):
            pass
    return {item.site: ratio_db(fsum(signal[item.site]), fsum(noise[item.site])) for item in plan.activations}


def unpadded_energy(x: Tensor, mask: Tensor | None, site: Site) -> float:
    """Returns the sum of squares of a site's tensor without padding, in float64."""
    if x.ndim != 3 or mask is None:
        return energy(site.tap.elements(x, mask))
    return float(torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).square()[mask].sum())


def _activation_row(item: ActivationQuant, sketch: Sketch, sqnr: float, network: str) -> dict[str, object]:
    return {
        "name": item.site,
        "kind": "activation",
        "grid": f"{item.grid}, {item.split}" if item.split else str(item.grid),
        "ranges": len(item.lo),
        "lo": min(item.lo, default=None),
        "hi": max(item.hi, default=None),
        "seen_min": sketch.min.min().item(),
        "seen_max": sketch.max.max().item(),
        "kurtosis": sketch.kurtosis(),
        "sqnr_db": sqnr,
        "seen_in": network,
    }


def _weight_row(weight: tuple[WeightQuant, Tensor]) -> dict[str, object]:
    item, value = weight
    return {
        "name": item.parameter,
        "kind": "weight",
        "grid": str(item.grid),
        "ranges": len(item.lo),
        "lo": min(item.lo, default=None),
        "hi": max(item.hi, default=None),
        "seen_min": value.min().item(),
        "seen_max": value.max().item(),
        "kurtosis": None,
        "sqnr_db": sqnr_db(value, item.snap(value)),
        "seen_in": "checkpoint",
    }
