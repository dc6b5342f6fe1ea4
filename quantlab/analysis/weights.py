"""The weights that make the outliers: the last step back."""

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
from quantlab.network.sites import Site, Tap
from quantlab.quant.sketch import Sketch

LISTED = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Ends:
    """What calibration saw of what enters a Linear, and of what it makes: its own output, or an activation of
    it."""

    inputs: Sketch | None
    outputs: Sketch | None
    linear: bool

    @property
    def products(self) -> Sketch | None:
        """The Linear's own output."""
        return self.outputs if self.linear else None


def weight_table(
    model: PreTrainedModel, sites: Sequence[Site], sketches: Mapping[str, Sketch], sigmas: float
) -> pd.DataFrame:
    """Every weight of a Linear beyond ``sigmas`` standard deviations of its matrix, largest first, up to
    :data:`LISTED`.

    ``row`` is the output's channel, ``column`` the input's; ``site`` that of the Linear's output,
    ``dominant`` whether that channel is a dominant one there. ``energy`` is the share of the channel's sum x²
    that the product of this one weight with its input makes by itself, w² E[in²] / E[out²]: over 1 where
    others cancel it. Where only the tensor after an activation function is a site, that is ``site``, and
    there is no ``energy``.
    """
    taps = {tap: site.name for site in sites for tap in (site.read_at, site.made_at) if tap is not None}
    rows = []
    for parameter, module in weighted_modules(model).items():
        if isinstance(module, nn.Linear):
            path = parameter.removesuffix(".weight")
            source, site = _input(path, taps), taps.get(Tap(path, "output"))
            made = site or _after_activation(source, module.out_features, sites)
            ends = Ends(
                inputs=sketches.get(source or ""), outputs=sketches.get(made or ""), linear=site is not None
            )
            rows += _rows(parameter, weight_of(module), ends, made, sigmas)
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
    """How many weights of Linears are beyond, listed or not."""
    weights = [weight_of(m) for m in weighted_modules(model).values() if isinstance(m, nn.Linear)]
    return sum(int((weight.abs() > sigmas * weight.std()).sum()) for weight in weights)


def _input(path: str, taps: Mapping[Tap, str]) -> str | None:
    """The site that a Linear reads; queries, keys and values read what the module around them is
    handed."""
    return taps.get(Tap(path, "input")) or taps.get(Tap(path.rpartition(".")[0], "input"))


def _after_activation(source: str | None, channels: int, sites: Sequence[Site]) -> str | None:
    """The next site with so many channels, in the layer of the site ``source`` that a Linear reads."""
    names = [site.name for site in sites]
    after = sites[names.index(source) + 1 :] if source else []
    scope = source.split(".")[0] if source else ""
    found = (site.name for site in after if site.channels == channels and site.name.split(".")[0] == scope)
    return next(found, None)


def _rows(
    parameter: str, weight: torch.Tensor, ends: Ends, site: str | None, sigmas: float
) -> list[dict[str, object]]:
    deviation = float(weight.std())
    dominant = set(dominant_channels(ends.outputs)) if ends.outputs else set()
    layers = [part for part in parameter.split(".") if part.isdigit()]
    sketches = ((ends.products, weight.shape[0]), (ends.inputs, weight.shape[1]))
    received, sent = (np.full(size, np.nan) if seen is None else mean_square(seen) for seen, size in sketches)
    found = []
    magnitudes, indices = weight.abs().flatten().topk(min(LISTED, weight.numel()))
    for index in indices[magnitudes > sigmas * deviation].tolist():
        row, column = divmod(index, weight.shape[1])
        value = float(weight[row, column])
        energy = value**2 * sent[column] / received[row]
        found.append(
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
    return found
