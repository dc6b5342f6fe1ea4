"""Attributes the change of the answers to single sites, and follows the errors along the residual stream.

The weights are quantized throughout. One variable after the other is narrow with the rest at their widest;
finally all are narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantlab.analysis.channels import real_tokens, stream_sites
from quantlab.cli.progress import progress
from quantlab.network.taps import tapped
from quantlab.searching.first_order import first_order_of
from quantlab.searching.setup import PreparedModel
from quantlab.searching.site_scores import divergence, noise_of, single_narrowings
from quantlab.searching.space import Choices
from quantlab.tasks.batching import Batch, on_device
from quantlab.tasks.outcomes import outcomes


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardRecord:
    """A candidate's answers and residual stream."""

    logits: list[np.ndarray]  # by batch, (rows, C): logits of the model's classes, or :func:`outcomes`
    stream: list[list[Tensor]]  # by batch and depth, (elements, channels), without padding


def attribution_table(prepared: PreparedModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the tables ``attribution`` and ``accumulation``.

    ``attribution``: one row a variable, the largest change of the answers first. ``sqnr_db`` is of the site's
    own tensor, ``logit_error`` the root mean square of the logits' change; ``first_order`` and ``kl`` are the
    scores of ``quantlab.sensitivity``.

    ``accumulation``: one row a depth of the residual stream. ``measured`` is the error power there with all
    sites narrow, ``additive`` the sum of the powers with one variable narrow at a time; the two agree if the
    errors are independent. ``signal`` is the power of the stream itself.
    """
    space, (batches, labels) = prepared.space, prepared.scored_rows()
    narrow, model = space.choices[0], prepared.material.model
    predicted = batches[0].predicted is not None
    noise = noise_of(model, space, prepared.table, narrow, batches)
    first_order = first_order_of(model, space.sites, prepared.table, narrow, batches, labels)
    base = record_forward(prepared, space.wide, batches)
    power = [sum(float(x.square().sum()) for x in depth) for depth in zip(*base.stream, strict=True)]
    rows, additive = [], np.zeros(len(power))
    alone = single_narrowings(space)[: len(space.variables)]  # of the narrowest choice
    for variable, chosen in progress(
        list(zip(space.variables, alone, strict=True)), "one site after the other"
    ):
        record = record_forward(prepared, chosen, batches)
        names = [site.name for site in variable.sites]
        additive += error_power(base, record)
        scope, role = variable.name.split(".", 1)
        rows.append(
            {
                "site": variable.name,
                "layer": scope,
                "role": role,
                "sqnr_db": -max(noise[name] for name in names),
                "logit_error": logit_error(base, record),
                "first_order": sum(first_order[name] for name in names),
                "kl": mean_divergence(base, record, predicted),
            }
        )
    accumulation = pd.DataFrame(
        {
            "depth": range(len(power)),
            "site": [site.name for site in stream_sites(prepared.material)],
            "additive": additive,
            "measured": error_power(base, record_forward(prepared, space.narrow, batches)),
            "signal": power,
        }
    )
    return pd.DataFrame(rows).sort_values("kl", ascending=False, ignore_index=True), accumulation


@torch.inference_mode()
def record_forward(prepared: PreparedModel, chosen: Choices, batches: Sequence[Batch]) -> ForwardRecord:
    """Runs a candidate and keeps its logits and residual stream."""
    model, sites = prepared.material.model, stream_sites(prepared.material)
    record = ForwardRecord(logits=[], stream=[])

    def look(index: int, mask: Tensor | None, x: Tensor) -> Tensor:
        record.stream[-1].append(sites[index].tap.elements(x, mask).float().clone())
        return x

    with prepared.insert(chosen):
        for batch in batches:
            record.stream.append([])
            inputs = on_device(batch, model.device)
            mask = real_tokens(batch)
            taps = {site.tap: partial(look, index, mask) for index, site in enumerate(sites)}
            with tapped(model, taps):
                logits = model(**inputs).logits
                record.logits.append(outcomes(logits, batch, range(logits.shape[-1])))
    return record


def error_power(base: ForwardRecord, other: ForwardRecord) -> np.ndarray:
    """Sum of squared differences between two residual streams at every depth, (depths,)."""
    by_batch = [
        [float((x - y).square().sum()) for x, y in zip(one, two, strict=True)]
        for one, two in zip(base.stream, other.stream, strict=True)
    ]
    return np.asarray(np.array(by_batch).sum(axis=0))


def logit_error(base: ForwardRecord, other: ForwardRecord) -> float:
    """Root mean square of the change of the logits."""
    change = np.concatenate(base.logits) - np.concatenate(other.logits)
    return float(np.sqrt(np.mean(change**2)))


def mean_divergence(base: ForwardRecord, other: ForwardRecord, predicted: bool = False) -> float:
    """Mean divergence of the answers from the base's, nats."""
    return float(np.mean(divergence(np.concatenate(base.logits), np.concatenate(other.logits), predicted)))
