"""Finds the outlying weights of Linears and the part of a channel's energy that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel

from quantlab.analysis.channels import mean_square
from quantlab.calibration.outlier_statistics import dominant_channels
from quantlab.methods.bits import weight_of, weighted_modules
from quantlab.network.readers import readers
from quantlab.network.sites import Site
from quantlab.network.taps import ModuleOutput
from quantlab.quant.sketch import Sketch

LISTED = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearSketches:
    """Calibration's sketches of a Linear's input and output."""

    inputs: Sketch | None
    outputs: Sketch | None  # of the Linear's output, or of the activation function after it
    linear: bool  # True: of the Linear's own output

    @property
    def products(self) -> Sketch | None:
        """The sketch of the Linear's own output, if there is one."""
        return self.outputs if self.linear else None


def weight_table(
    model: PreTrainedModel, sites: Sequence[Site], sketches: Mapping[str, Sketch], sigmas: float
) -> pd.DataFrame:
    """Weights of Linears beyond ``sigmas`` standard deviations of their matrix, the largest :data:`LISTED`.

    ``row`` is the channel of the output, ``column`` of the input; ``site`` is that of the Linear's output,
    ``dominant`` whether the channel is a dominant one there. ``energy`` = w² E[in²] / E[out²], the energy of
    this weight's product alone over that of the channel; above 1 where other products cancel it. If only the
    tensor after an activation function is a site, that is ``site``, and ``energy`` is NaN.
    """
    taps = {tap: site.name for site in sites for tap in (site.read_at, site.made_at) if tap is not None}
    read, rows = readers(model), []
    for parameter, module in weighted_modules(model).items():
        if isinstance(module, nn.Linear):
            path = parameter.removesuffix(".weight")
            source, site = read.get(path), taps.get(ModuleOutput(path))
            made = site or _after_activation(source, module.out_features, sites)
            around = LinearSketches(
                inputs=sketches.get(source or ""), outputs=sketches.get(made or ""), linear=site is not None
            )
            rows += _rows(parameter, weight_of(module), around, made, sigmas)
    columns = [
        "parameter",
        "layer",
        "row",
        "column",
        "value",
        "sigmas",
        "site",
        "channel",
        "dominant",
        "energy",
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("sigmas", key=np.abs, ascending=False, ignore_index=True).head(LISTED)


def outlier_weights(model: PreTrainedModel, sigmas: float) -> int:
    """The number of weights of Linears beyond ``sigmas`` standard deviations of their matrix."""
    weights = [weight_of(m) for m in weighted_modules(model).values() if isinstance(m, nn.Linear)]
    return sum(int((weight.abs() > sigmas * weight.std()).sum()) for weight in weights)


def _after_activation(source: str | None, channels: int, sites: Sequence[Site]) -> str | None:
    """The next site after ``source`` in its layer that has this many channels."""
    names = [site.name for site in sites]
    after = sites[names.index(source) + 1 :] if source else []
    scope = source.split(".")[0] if source else ""
    fitting = (site.name for site in after if site.channels == channels and site.name.split(".")[0] == scope)
    return next(fitting, None)


def _rows(
    parameter: str, weight: torch.Tensor, around: LinearSketches, site: str | None, sigmas: float
) -> list[dict[str, object]]:
    deviation = float(weight.std())
    dominant = set(dominant_channels(around.outputs)) if around.outputs else set()
    layers = [part for part in parameter.split(".") if part.isdigit()]
    sketches = ((around.products, weight.shape[0]), (around.inputs, weight.shape[1]))
    received, sent = (np.full(size, np.nan) if one is None else mean_square(one) for one, size in sketches)
    table = []
    magnitudes, indices = weight.abs().flatten().topk(min(LISTED, weight.numel()))
    for index in indices[magnitudes > sigmas * deviation].tolist():
        row, column = divmod(index, weight.shape[1])
        value = float(weight[row, column])
        energy = value**2 * sent[column] / received[row]
        table.append(
            {
                "parameter": parameter,
                "layer": layers[0] if layers else "",
                "row": row,
                "column": column,
                "value": value,
                "sigmas": value / deviation,
                "site": site or "",
                "channel": row,
                "dominant": row in dominant,
                "energy": energy,
            }
        )
    return table
