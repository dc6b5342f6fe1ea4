"""Which channels stand out along the residual stream, how much, and how stably."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantlab.batching import Batch, on_device
from quantlab.calibration import Calibration, observe
from quantlab.material import Material
from quantlab.outlier_statistics import dominant_channels, hidden_states, jaccard, statistics
from quantlab.placement.insert import tapped
from quantlab.placement.sites import Site
from quantlab.quant.sketch import Sketch

Sketches = Mapping[str, Sketch]
DRAWN = 32  # channels in the heat map


def stream_sites(material: Material) -> list[Site]:
    """The residual stream by depth: the embeddings' output and every layer's."""
    by_name = {place.name: place for place in material.places}
    found = (by_name[name] for name in hidden_states(material.places))
    return [Site(name=p.name, channels=p.channels, tap=p.tensor) for p in found if p.tensor is not None]


def layer_table(material: Material, calibration: Calibration, sketches: Sketches, draws: int) -> pd.DataFrame:
    """One row a depth: statistics, those of arXiv 2603.04308 beside them, and how stable the dominant channels are."""
    sites = stream_sites(material)
    rows = [{"depth": d, "site": s.name, **statistics(sketches[s.name])} for d, s in enumerate(sites)]
    table = pd.DataFrame(rows).merge(published_statistics(material, calibration, sites), on="site")
    dominant = [set(dominant_channels(sketches[site.name])) for site in sites]
    table["jaccard_previous"] = [np.nan, *(jaccard(a, b) for a, b in pairwise(dominant))]
    table["jaccard_draws"] = _stability(material, calibration, sites, draws)
    return table


def channel_table(sketches: Sketches, names: Sequence[str]) -> pd.DataFrame:
    """The strongest channels of the stream at every depth: largest magnitude and root mean square."""
    largest = np.stack([sketches[name].magnitudes() for name in names])
    strength = (largest / np.median(largest, axis=1, keepdims=True)).max(axis=0)
    strongest = np.sort(np.argsort(-strength, kind="stable")[:DRAWN])
    rms = np.stack([np.sqrt(sketches[name].power_sums[1].numpy() / sketches[name].count) for name in names])
    return pd.DataFrame([
        {"depth": depth, "channel": int(c), "largest": largest[depth, c], "rms": rms[depth, c]}
        for depth in range(len(names))
        for c in strongest
    ])  # fmt: skip


@torch.inference_mode()
def published_statistics(material: Material, calibration: Calibration, sites: Sequence[Site]) -> pd.DataFrame:
    """Kurtosis and top-1 % energy as arXiv 2603.04308 took them: of the flattened batch, padding to the task's full
    length counted, the mean over batches; "channels" there are elements."""
    found: dict[str, list[tuple[float, float]]] = {site.name: [] for site in sites}

    def look(site: Site, x: Tensor) -> Tensor:
        sketch = Sketch(channels=site.channels)
        sketch.update(x.reshape(-1, x.shape[-1]))
        found[site.name].append((sketch.kurtosis(), sketch.energy_top_elements()))
        return x

    batches = material.calibration_batches(replace(calibration, padding="included"))
    with tapped(material.model, {site.tap: partial(look, site) for site in sites}):
        run_all(material, batches)
    means = {name: np.mean(values, axis=0) for name, values in found.items()}
    return pd.DataFrame([
        {"site": name, "kurtosis_published": mean[0], "top1pct_energy_published": mean[1]}
        for name, mean in means.items()
    ])  # fmt: skip


def run_all(material: Material, batches: Sequence[Batch], before: Callable[[Batch], None] | None = None) -> None:
    """Runs the model over batches for what its taps see; ``before`` is told of each."""
    for batch in batches:
        if before is not None:
            before(batch)
        material.model(**on_device(batch, material.model.device))


def _stability(material: Material, calibration: Calibration, sites: Sequence[Site], draws: int) -> list[float]:
    """Mean Jaccard index of the dominant channels over pairs of calibration draws, by site; NaN of a single draw."""
    seeds = [replace(calibration, seed=seed) for seed in range(draws)]
    seen = [observe(material.model, sites, material.calibration_batches(drawn)) for drawn in seeds]
    found = {site.name: [dominant_channels(sketches[site.name]) for sketches in seen] for site in sites}
    pairs = {name: [jaccard(a, b) for a, b in combinations(sets, 2)] for name, sets in found.items()}
    return [float(np.mean(values)) if values else np.nan for values in pairs.values()]
