"""Outlier channels along the residual stream: which ones, how strong, and how stable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantlab.calibration.estimators import Calibration
from quantlab.calibration.outlier_statistics import dominant_channels, hidden_states, jaccard, site_statistics
from quantlab.calibration.probe import observe
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.quant.sketch import Sketch
from quantlab.tasks.batching import Batch, on_device
from quantlab.trial.material import Material

Sketches = Mapping[str, Sketch]
DRAWN = 32  # channels in the heat map


def stream_sites(material: Material) -> list[Site]:
    """The hidden states by depth: the embeddings' output, then every layer's output."""
    return _sites(material, hidden_states(material.sites))


def sum_sites(material: Material) -> list[Site]:
    """The residual sums by depth; the hidden state where an architecture has no sum.

    Outlier channels stand out there: the LayerNorm after the sum rescales every channel.
    """
    known = {site.name for site in material.sites}
    names = [
        (name, name.replace("embed.out", "embed.sum").replace("layer.out", "ffn.sum"))
        for name in hidden_states(material.sites)
    ]
    return _sites(material, [summed if summed in known else name for name, summed in names])


def _sites(material: Material, names: Sequence[str]) -> list[Site]:
    by_name = {site.name: site for site in material.sites}
    return [by_name[name] for name in names if by_name[name].made_at is not None]


def layer_table(material: Material, calibration: Calibration, sketches: Sketches, draws: int) -> pd.DataFrame:
    """One row a depth.

    Statistics of the hidden state, with those of arXiv 2603.04308 beside them; ``sum_*`` and ``dominant`` are
    of the residual sum that leads to it. ``jaccard_previous`` compares the dominant channels with the
    previous depth's, ``jaccard_draws`` over draws of calibration rows.
    """
    sites, sums = stream_sites(material), sum_sites(material)
    rows = [{"depth": d, "site": s.name, **site_statistics(sketches[s.name])} for d, s in enumerate(sites)]
    table = pd.DataFrame(rows).drop(columns="dominant")
    table = table.merge(published_statistics(material, calibration, sites), on="site")
    dominant = [dominant_channels(sketches[site.name]) for site in sums]
    return table.assign(
        sum_site=[site.name for site in sums],
        sum_kurtosis=[sketches[site.name].kurtosis() for site in sums],
        sum_rms=[float(np.sqrt(mean_square(sketches[site.name]).mean())) for site in sums],
        sum_largest=[float(sketches[site.name].magnitudes().max()) for site in sums],
        dominant=[" ".join(map(str, channels)) for channels in dominant],
        jaccard_previous=[np.nan, *(jaccard(a, b) for a, b in pairwise(dominant))],
        jaccard_draws=_stability(material, calibration, sketches, sums, draws),
    )


def mean_square(sketch: Sketch) -> np.ndarray:
    """E[x²] of each channel, (channels,)."""
    return np.asarray(sketch.energies().numpy() / sketch.count)


def channel_table(material: Material, sketches: Sketches) -> pd.DataFrame:
    """The strongest channels of the residual sums: largest magnitude and root mean square at every depth."""
    sites = sum_sites(material)
    width = sites[-1].channels  # leaves out an embedding that is narrower
    names = {depth: site.name for depth, site in enumerate(sites) if site.channels == width}
    largest = np.stack([sketches[name].magnitudes() for name in names.values()])
    strength = (largest / np.median(largest, axis=1, keepdims=True)).max(axis=0)
    strongest = np.sort(np.argsort(-strength, kind="stable")[:DRAWN])
    rms = np.sqrt(np.stack([mean_square(sketches[name]) for name in names.values()]))
    return pd.DataFrame(
        [
            {"depth": depth, "site": name, "channel": int(c), "largest": largest[row, c], "rms": rms[row, c]}
            for row, (depth, name) in enumerate(names.items())
            for c in strongest
        ]
    )


@torch.inference_mode()
def published_statistics(material: Material, calibration: Calibration, sites: Sequence[Site]) -> pd.DataFrame:
    """Kurtosis and top-1 % energy as arXiv 2603.04308 computes them: over the flattened batch, padding to the
    task's full length included, as the mean over batches. What the paper calls channels are elements."""
    by_batch: dict[str, list[tuple[float, float]]] = {site.name: [] for site in sites}

    def look(site: Site, x: Tensor) -> Tensor:
        sketch = Sketch(channels=site.channels)
        sketch.update(x.reshape(-1, x.shape[-1]))
        by_batch[site.name].append((sketch.kurtosis(), sketch.energy_top_elements()))
        return x

    batches = material.calibration_batches(replace(calibration, padding="included"))
    with tapped(material.model, {site.tap: partial(look, site) for site in sites}):
        run_all(material, batches)
    means = {name: np.mean(values, axis=0) for name, values in by_batch.items()}
    return pd.DataFrame(
        [
            {"site": name, "kurtosis_published": mean[0], "top1pct_energy_published": mean[1]}
            for name, mean in means.items()
        ]
    )


def run_all(
    material: Material, batches: Sequence[Batch], before: Callable[[Batch], None] | None = None
) -> None:
    """Runs the model over batches, discarding its answers; ``before`` is called with each batch first."""
    for batch in batches:
        if before is not None:
            before(batch)
        material.model(**on_device(batch, material.model.device))


def real_tokens(batch: Batch) -> Tensor | None:
    """Which tokens of a batch are no padding, bool (rows, tokens); None for images, which have none."""
    mask = batch.inputs.get("attention_mask")
    return None if mask is None else mask.bool()


def _stability(
    material: Material, calibration: Calibration, sketches: Sketches, sites: Sequence[Site], draws: int
) -> list[float]:
    """Mean Jaccard index of the dominant channels over pairs of draws of calibration rows, by site.

    The rows that calibrate are the first draw, whose sketches are known. Pairs without any dominant channel
    are left out; NaN if no pair is left.
    """
    others = [seed for seed in range(draws) if seed != calibration.seed][: draws - 1]
    counted = calibration.counts_padding
    observed = [
        sketches,
        *(
            observe(
                material.model,
                sites,
                material.calibration_batches(replace(calibration, seed=seed)),
                counted,
            )
            for seed in others
        ),
    ]
    dominant = {
        site.name: [dominant_channels(sketches[site.name]) for sketches in observed] for site in sites
    }
    pairs = {name: [jaccard(a, b) for a, b in combinations(sets, 2)] for name, sets in dominant.items()}
    known = [[value for value in values if not np.isnan(value)] for values in pairs.values()]
    return [float(np.mean(values)) if values else np.nan for values in known]
