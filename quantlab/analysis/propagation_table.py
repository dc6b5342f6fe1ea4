"""The tables ``propagation`` and ``recursion`` of an analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from quantlab.analysis.channels import stream_sites, sum_sites
from quantlab.analysis.propagation import FRACTIONS, Propagated, Sums, propagate
from quantlab.analysis.propagation_findings import ALL
from quantlab.analysis.tangents import Source
from quantlab.engines.insert import quantizer
from quantlab.engines.resume import first_layer, layers_of
from quantlab.network.sites import Site
from quantlab.searching.setup import PreparedModel
from quantlab.tasks.batching import Batch

ROWS, TOKENS = 8, 1024  # at most; a row of more tokens is taken alone


def propagation_tables(prepared: PreparedModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the tables ``propagation`` and ``recursion`` of the decided sites at their narrowest choice, in
    the network with quantized weights.

    ``propagation``: one row a variable, the largest measured error first, and last the row ``all``.
    ``local`` is the error at the source over the tensor itself, ``predicted`` and ``measured`` the error of
    the logits (all root mean squares), ``ratio`` measured over predicted, ``cosine`` between the two,
    ``fails`` whether the ratio is off by more than 2, ``ratio_half`` and ``ratio_eighth`` the ratio at these
    fractions of the error, where the prediction fails. In the row ``all`` ``predicted`` is of the sum of all
    J e, and ``superposition`` the measured power over the sum of the predicted ones.

    ``recursion``: one row a depth. ``error``, the predicted error of independent sources, is ``carried`` on
    from the depth before, times ``gain``, and ``born`` in the layer; ``measured`` with all sources
    quantized, ``signal`` the stream itself (root mean squares, of all elements). ``norm_gain`` is what a
    post-norm layer's norm makes of the error at its residual sum.
    """
    material, rows = prepared.material, _few_rows(prepared)
    stream, sums = stream_sites(material), sum_sites(material)
    watched = {site.name: site.tap for site in (*stream, *sums)}
    found = propagate(material.model, sources_of(prepared), watched, rows)
    return source_table(found), recursion_table(found, stream, sums)


def sources_of(prepared: PreparedModel) -> list[Source]:
    """The variables at their narrowest choice."""
    model, narrow = prepared.material.model, prepared.space.choices[0]
    depth = len(layers_of(model))
    return [
        Source(
            name=variable.name,
            snaps={s.tap: quantizer(prepared.table[s.name, narrow], model.device) for s in variable.sites},
            layer=min(first_layer(site.name, depth) for site in variable.sites),
        )
        for variable in prepared.space.variables
    ]


def _few_rows(prepared: PreparedModel) -> list[Batch]:
    """Calibration rows, at most :data:`ROWS` and, of windows, :data:`TOKENS`."""
    config, material = prepared.config, prepared.material
    rows = min(ROWS, config.search.sensitivity_rows)
    batches = material.calibration_batches(replace(config.calibration, samples=rows))
    if batches[0].predicted is None:
        return batches
    tokens = np.cumsum([batch.inputs["input_ids"].numel() for batch in batches])
    return batches[: max(1, int((tokens <= TOKENS).sum()))]


def source_table(found: Propagated) -> pd.DataFrame:
    """The table ``propagation`` of :func:`propagation_tables`."""
    scale = 1 / np.sqrt(found.elements)
    rows = [
        {"site": name, **_numbers(one, scale), "fails": found.fails(one)}
        for name, one in found.sources.items()
    ]
    table = pd.DataFrame(rows).sort_values("measured", ascending=False, ignore_index=True)
    together = {
        "site": ALL,
        **_numbers(found.together, scale),
        "fails": found.fails(found.together),
        "superposition": found.superposition,
    }
    return pd.concat([table.assign(superposition=np.nan), pd.DataFrame([together])], ignore_index=True)


def _numbers(sums: Sums, scale: float) -> dict[str, float]:
    half, eighth = (sums.ratio_at(fraction) for fraction in FRACTIONS)
    return {
        "local": float(np.sqrt(sums.local / sums.signal)) if sums.signal else np.nan,
        "predicted": scale * float(np.sqrt(sums.predicted)),
        "measured": scale * float(np.sqrt(sums.measured)),
        "ratio": sums.ratio,
        "cosine": sums.cosine,
        "ratio_half": half,
        "ratio_eighth": eighth,
    }


def recursion_table(found: Propagated, stream: Sequence[Site], sums: Sequence[Site]) -> pd.DataFrame:
    """The table ``recursion`` of :func:`propagation_tables`."""
    rows, before = [], None
    for depth, (site, summed) in enumerate(zip(stream, sums, strict=True)):
        at = _powers(found, site.name)
        power = sum(at.values())
        earlier: Mapping[str, float] = {} if before is None else _powers(found, before.name)
        old = {name for name, one in earlier.items() if one}
        carried = sum(one for name, one in at.items() if name in old)
        arrived = 0.0 if before is None else sum(_powers(found, before.name).values())
        rows.append(
            {
                "depth": depth,
                "site": site.name,
                "error": np.sqrt(power),
                "carried": np.sqrt(carried),
                "born": np.sqrt(power - carried),
                "gain": np.sqrt(carried / arrived) if arrived else np.nan,
                "norm_gain": _norm_gain(found, site.name, summed.name),
                "measured": np.sqrt(found.measured_at[site.name]),
                "signal": np.sqrt(found.signal[site.name]),
            }
        )
        before = site
    return pd.DataFrame(rows)


def _norm_gain(found: Propagated, site: str, summed: str) -> float:
    """What the norm between a residual sum and the hidden state makes of the errors that reach the sum."""
    into = _powers(found, summed)
    if site == summed or not sum(into.values()):
        return np.nan
    out = sum(one for name, one in _powers(found, site).items() if into[name])
    return float(np.sqrt(out / sum(into.values())))


def _powers(found: Propagated, site: str) -> Mapping[str, float]:
    return {name: one.at.get(site, 0.0) for name, one in found.sources.items()}
