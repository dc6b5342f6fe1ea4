"""Site by site: the range each tensor got, what was seen there, and what its quantization alone costs."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import partial
from math import fsum
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from quantlab.batching import Batch, on_device
from quantlab.calibration import flat
from quantlab.parallel import side_by_side
from quantlab.placement.attention import Function
from quantlab.placement.insert import quantizer, snap_weight, tapped
from quantlab.placement.plan import ActivationQuant, QuantPlan, WeightQuant
from quantlab.placement.sites import Site
from quantlab.quant.errors import energy, ratio_db, sqnr_db
from quantlab.quant.grid import FloatGrid
from quantlab.quant.sketch import Sketch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def site_table(
    model: PreTrainedModel,
    plan: QuantPlan,
    sites: Sequence[Site],
    sketches: Mapping[str, Sketch],
    batches: Sequence[Batch],
) -> pd.DataFrame:
    """One row a quantized tensor: grid, ranges, extremes seen in calibration, and its SQNR when it alone is quantized.

    A site's SQNR is that of the FP32 network's tensor on the site's grid, over the batches, without padding; a
    weight's is exact.
    """
    sqnr = site_sqnr_db(model, plan, sites, batches)
    rows = [_activation_row(item, sketches[item.site], sqnr[item.site]) for item in plan.activations]
    return pd.DataFrame(rows + [_weight_row(item, model.get_parameter(item.parameter).data) for item in plan.weights])


def site_sqnr_db(
    model: PreTrainedModel, plan: QuantPlan, sites: Sequence[Site], batches: Sequence[Batch]
) -> dict[str, float]:
    """SQNR of each of the plan's sites in dB, the network itself in FP32; one pass serves them all."""
    by_name = {site.name: site for site in sites}
    signal: dict[str, list[float]] = defaultdict(list)
    noise: dict[str, list[float]] = defaultdict(list)
    running = threading.local()  # batches run side by side, each with the mask of its padding

    def compare(site: Site, snap: Function, x: Tensor) -> Tensor:
        signal[site.name].append(unpadded_energy(x, running.mask, site))
        noise[site.name].append(unpadded_energy(x - snap(x), running.mask, site))
        return x

    @torch.inference_mode()
    def run(batch: Batch) -> None:
        inputs = on_device(batch, model.device)
        running.mask = inputs["attention_mask"].bool()
        model(**inputs)

    functions = {
        item.tap: partial(compare, by_name[item.site], quantizer(item, model.device)) for item in plan.activations
    }
    with tapped(model, functions):
        deque(side_by_side(run, batches, model.device), maxlen=0)
    return {item.site: ratio_db(fsum(signal[item.site]), fsum(noise[item.site])) for item in plan.activations}


def unpadded_energy(x: Tensor, mask: Tensor, site: Site) -> float:
    """Sum of squares of a site's tensor without its padding, in float64."""
    if x.ndim != 3 or site.tap.at in ("scores", "probs"):
        return energy(flat(x, mask, site))
    return float(torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).square()[mask].sum())


def _activation_row(item: ActivationQuant, sketch: Sketch, sqnr: float) -> dict[str, object]:
    return {
        "name": item.site,
        "kind": "activation",
        "grid": str(item.grid),
        "ranges": len(item.lo),
        "lo": min(item.lo, default=None),
        "hi": max(item.hi, default=None),
        "seen_min": sketch.min.min().item(),
        "seen_max": sketch.max.max().item(),
        "kurtosis": sketch.kurtosis(),
        "sqnr_db": sqnr,
    }


def _weight_row(item: WeightQuant, value: Tensor) -> dict[str, object]:
    no_range = isinstance(item.grid, FloatGrid)
    return {
        "name": item.parameter,
        "kind": "weight",
        "grid": str(item.grid),
        "ranges": len(item.lo),
        "lo": None if no_range else min(item.lo),
        "hi": None if no_range else max(item.hi),
        "seen_min": value.min().item(),
        "seen_max": value.max().item(),
        "kurtosis": None,
        "sqnr_db": sqnr_db(value, snap_weight(value, item)),
    }
