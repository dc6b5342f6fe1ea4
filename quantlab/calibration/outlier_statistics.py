"""Outlier statistics from sketches: by site, by depth, and the channels that stand out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from quantlab.network.sites import Site
from quantlab.quant.sketch import Sketch

DOMINANT = 6.0  # a dominant channel's largest magnitude, as a multiple of the median channel's
LAYER_METRICS = ("kurtosis", "variance", "top1pct_energy_channels", "top1pct_energy_elements")


def hidden_states(sites: Sequence[Site]) -> list[str]:
    """Names of the residual stream's sites by depth: the embeddings' output, then every layer's output."""
    return ["embed.out"] + [site.name for site in sites if site.name.endswith(".layer.out")]


def by_depth(sketches: Mapping[str, Sketch], names: Sequence[str]) -> dict[str, list[float]]:
    """Each of :data:`LAYER_METRICS` by site, as arXiv 2603.04308 defines them.

    Kurtosis is Pearson's, of all elements of a site.
    """
    stream = [sketches[name] for name in names]
    return {
        "kurtosis": [sketch.kurtosis() for sketch in stream],
        "variance": [sketch.variance() for sketch in stream],
        "top1pct_energy_channels": [sketch.energy_top_channels() for sketch in stream],
        "top1pct_energy_elements": [sketch.energy_top_elements() for sketch in stream],
    }


def by_site(sketches: Mapping[str, Sketch]) -> pd.DataFrame:
    """A table of :func:`site_statistics`, one row per site that was seen."""
    return pd.DataFrame(
        [{"site": name, **site_statistics(sketch)} for name, sketch in sketches.items() if sketch.count]
    )


def site_statistics(sketch: Sketch) -> dict[str, float | str]:
    """One site's row: kurtosis, variance, extremes, energy of the top 1 %, and the dominant channels.

    Kurtosis is Pearson's: of all elements, and the median and largest of the channels'. Dominant channels are
    listed strongest first.
    """
    by_channel = sketch.channel_kurtosis()
    known = by_channel[np.isfinite(by_channel)]
    return {
        "kurtosis": sketch.kurtosis(),
        "channel_kurtosis_median": float(np.median(known)) if len(known) else math.nan,
        "channel_kurtosis_max": float(known.max(initial=-math.inf)) if len(known) else math.nan,
        "variance": sketch.variance(),
        "min": sketch.min.min().item(),
        "max": sketch.max.max().item(),
        "top1pct_energy_channels": sketch.energy_top_channels(),
        "top1pct_energy_elements": sketch.energy_top_elements(),
        "dominant": " ".join(map(str, dominant_channels(sketch))),
    }


def dominant_channels(sketch: Sketch) -> list[int]:
    """The channels that set a site's range, strongest first.

    Their largest magnitude is over :data:`DOMINANT` times the median channel's. The median makes the rule
    robust: it finds all dominant channels while they are less than half of the channels.
    """
    largest = sketch.magnitudes()
    order, bound = np.argsort(-largest, kind="stable"), DOMINANT * np.median(largest)
    return [int(channel) for channel in order if largest[channel] > bound]


def jaccard(a: Iterable[int], b: Iterable[int]) -> float:
    """``|A and B| / |A or B|`` of two sets; NaN if both are empty."""
    one, other = set(a), set(b)
    return len(one & other) / len(one | other) if one | other else math.nan


def plot_by_depth(layers: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """Saves a PNG of kurtosis, and of the energy in the top 1 % of channels and elements, by depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    depth = range(len(layers["kurtosis"]))
    left.plot(depth, layers["kurtosis"], "o-", color="#0072B2")
    left.axhline(3, color="gray", linewidth=0.8, linestyle="--")
    left.annotate("Gaussian", (0, 3), xytext=(0, 3), textcoords="offset points", color="gray", fontsize=8)
    top = 10.0 ** math.ceil(math.log10(1.1 * max([10.0, *filter(math.isfinite, layers["kurtosis"])])))
    left.set(yscale="log", ylim=(1, top), ylabel="kurtosis (Pearson's)")
    left.yaxis.set_major_formatter("{x:g}")
    right.plot(depth, layers["top1pct_energy_channels"], "o-", color="#0072B2", label="of channels")
    right.plot(depth, layers["top1pct_energy_elements"], "s--", color="#D55E00", label="of elements")
    right.set(ylim=(0, 1), ylabel="share of energy in the top 1 %")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set(xlabel="depth (0: embeddings)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
