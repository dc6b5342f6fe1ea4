"""The share of a site's quantization error that is due to outliers.

A min-max range rounds outliers no worse than the other elements, but it is wide because of them, and with it
the step for all elements. So there are two numbers: the error in the outliers themselves, and the error of
the other elements that a range without the outliers would avoid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantlab.analysis.channels import real_tokens
from quantlab.calibration.outlier_statistics import dominant_channels
from quantlab.engines.insert import quantizer
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.sketch import Sketch
from quantlab.searching.setup import PreparedModel
from quantlab.tasks.batching import Batch, on_device

SIGMAS = 6.0
WIDER = 1 + 2.0**-8  # a sketch keeps midpoints of buckets; the end of a bucket is at most this factor away
SHARES = ("in_beyond_6_sigma", "due_to_beyond_6_sigma", "in_dominant_channels", "due_to_dominant_channels")

Snap = Callable[[Tensor], Tensor]


@dataclass
class SquaredErrors:
    """Sums of squared errors at one site."""

    total: float = 0.0
    inside: dict[str, float] = field(default_factory=lambda: {"sigma": 0.0, "channels": 0.0})
    without: dict[str, float] = field(default_factory=lambda: {"sigma": 0.0, "channels": 0.0})

    def shares(self) -> dict[str, float]:
        """:data:`SHARES` and ``error_power``, the sum itself; NaN where there is no error."""
        total, inside, without = self.total or np.nan, self.inside, self.without
        return {
            "in_beyond_6_sigma": inside["sigma"] / total,
            "due_to_beyond_6_sigma": 1 - without["sigma"] / total,
            "in_dominant_channels": inside["channels"] / total,
            "due_to_dominant_channels": 1 - without["channels"] / total,
            "error_power": self.total,
        }


@torch.inference_mode()
def error_shares(prepared: PreparedModel) -> pd.DataFrame:
    """Shares of the squared error (:data:`SHARES`) of each decided site at its narrowest, all other sites
    unquantized.

    ``in_*``: error of the outliers / error of all elements. ``due_to_*``: 1 - error of the other elements on
    their own range / error of all elements.
    """
    batches, _ = prepared.scored_rows()
    items = {site.name: prepared.table[site.name, prepared.space.choices[0]] for site in prepared.space.sites}
    sites = {site.name: site for site in prepared.space.sites}
    found = {name: SquaredErrors() for name, item in items.items() if item.grid.ranged}
    _observe(
        prepared,
        batches,
        [ErrorObserver.of(sites[n], items[n], prepared.sketches[n], found[n]) for n in found],
    )
    return pd.DataFrame([{"site": name, **errors.shares()} for name, errors in found.items()])


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorObserver:
    """Adds up the errors of one site, batch by batch."""

    site: Site
    snap: Snap
    without: dict[str, Snap]  # the same grid on the range of the other elements, by kind of outlier
    bounds: tuple[float, float]
    channels: list[int]
    errors: SquaredErrors

    @classmethod
    def of(cls, site: Site, item: ActivationQuant, sketch: Sketch, errors: SquaredErrors) -> "ErrorObserver":
        """``item`` quantizes the site; ``sketch`` has its values in FP32."""
        mean, variance, _ = sketch.moments()
        bounds = (mean - SIGMAS * variance**0.5, mean + SIGMAS * variance**0.5)
        values = sketch.values()[0]
        inside = WIDER * np.append(values[(values >= bounds[0]) & (values <= bounds[1])], mean)
        channels = dominant_channels(sketch)
        others = np.setdiff1d(np.arange(sketch.channels), channels)
        beyond = sketch.min.min().item() < bounds[0] or sketch.max.max().item() > bounds[1]
        ranges = {
            "sigma": _within(item, inside.min(), inside.max()) if beyond else item,
            "channels": _within(item, sketch.min[others].min().item(), sketch.max[others].max().item())
            if channels
            else item,
        }
        snap, *without = (quantizer(one, torch.device("cpu")) for one in (item, *ranges.values()))
        return cls(
            site=site,
            snap=snap,
            without=dict(zip(ranges, without, strict=True)),
            bounds=bounds,
            channels=channels,
            errors=errors,
        )

    def look(self, x: Tensor, mask: Tensor | None) -> None:
        """Adds one batch."""
        values = x.float().cpu()
        kept = self.site.tap.elements(values, mask)
        error = self.site.tap.elements(values - self.snap(values), mask).double().square()
        outlying = {
            "sigma": (kept < self.bounds[0]) | (kept > self.bounds[1]),
            "channels": torch.zeros_like(kept).bool(),
        }
        outlying["channels"][:, self.channels] = True
        self.errors.total += float(error.sum())
        for kind, chosen in outlying.items():
            rest = self.site.tap.elements(values - self.without[kind](values), mask).double().square()
            self.errors.inside[kind] += float(error[chosen].sum())
            self.errors.without[kind] += float(rest[~chosen].sum())


def _within(item: ActivationQuant, lo: float, hi: float) -> ActivationQuant:
    """The same grid with its ranges cut to the bounds."""
    return replace(item, lo=tuple(max(end, lo) for end in item.lo), hi=tuple(min(end, hi) for end in item.hi))


def _observe(prepared: PreparedModel, batches: Sequence[Batch], observers: Sequence[ErrorObserver]) -> None:
    """Runs the model over batches, with each observer at its site."""

    def look(observer: ErrorObserver, mask: Tensor | None, x: Tensor) -> Tensor:
        observer.look(x, mask)
        return x

    model = prepared.material.model
    for batch in batches:
        mask = real_tokens(batch)
        with tapped(model, {one.site.tap: partial(look, one, mask) for one in observers}):
            model(**on_device(batch, model.device))
