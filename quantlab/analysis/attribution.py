"""Which sites' quantization changes the answers, how the errors add up along the residual stream, and what
makes them.

The weights are on their grids; one site after the other is narrow, the rest at their widest, and then all are
narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantlab.analysis.channels import stream_sites
from quantlab.cli.progress import progress
from quantlab.network.taps import tapped, valid_elements
from quantlab.searching.scores import combinations_of, divergence, first_order_of, noise_of
from quantlab.searching.setup import Bench
from quantlab.searching.space import Choices
from quantlab.tasks.batching import Batch, on_device


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One candidate's answers, and the residual stream that led to them."""

    logits: list[np.ndarray]  # by batch, (rows, the model's classes)
    stream: list[list[Tensor]]  # by batch and depth, (elements, channels), without padding


def attribution_table(ready: Bench) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a decided variable, the one that changes the answers most first; and one row a depth: the error
    power of all sites quantized against the sum of what each alone makes there (they add up if errors are
    independent).

    ``sqnr_db`` is of the site's own tensor; ``logit_error`` the root mean square of what it changes of the
    logits; ``first_order`` and ``kl`` are the scores of ``quantlab.sensitivity``.
    """
    space, (batches, labels) = ready.space, ready.scored_rows()
    narrow, model = space.choices[0], ready.material.model
    noise = noise_of(model, space, ready.table, narrow, batches)
    first_order = first_order_of(model, space.sites, ready.table, narrow, batches, labels)
    base = answered(ready, space.wide, batches)
    power = [sum(float(x.square().sum()) for x in depth) for depth in zip(*base.stream, strict=True)]
    rows, additive = [], np.zeros(len(power))
    alone = combinations_of(space)[: len(space.variables)]  # of the narrowest choice
    for variable, chosen in progress(
        list(zip(space.variables, alone, strict=True)), "one site after the other"
    ):
        seen, names = answered(ready, chosen, batches), [site.name for site in variable.sites]
        additive += error_power(base, seen)
        scope, role = variable.name.split(".", 1)
        rows.append(
            {
                "site": variable.name,
                "layer": scope,
                "role": role,
                "sqnr_db": -max(noise[name] for name in names),
                "logit_error": logit_error(base, seen),
                "first_order": sum(first_order[name] for name in names),
                "kl": kl(base, seen),
            }
        )
    accumulation = pd.DataFrame(
        {
            "depth": range(len(power)),
            "site": [site.name for site in stream_sites(ready.material)],
            "additive": additive,
            "measured": error_power(base, answered(ready, space.narrow, batches)),
            "signal": power,
        }
    )
    return pd.DataFrame(rows).sort_values("kl", ascending=False, ignore_index=True), accumulation


@torch.inference_mode()
def answered(ready: Bench, chosen: Choices, batches: Sequence[Batch]) -> Seen:
    """A candidate's logits and residual stream."""
    model, sites = ready.material.model, stream_sites(ready.material)
    seen = Seen(logits=[], stream=[])
    mask = torch.empty(0)

    def look(index: int, x: Tensor) -> Tensor:
        seen.stream[-1].append(valid_elements(x, mask, sites[index]).float().clone())
        return x

    taps = {site.tap: partial(look, index) for index, site in enumerate(sites)}
    with ready.insert_activations(ready.activations(chosen)), tapped(model, taps):
        for batch in batches:
            seen.stream.append([])
            inputs = on_device(batch, model.device)
            mask = inputs["attention_mask"].bool()
            seen.logits.append(model(**inputs).logits.float().cpu().numpy())
    return seen


def error_power(base: Seen, seen: Seen) -> np.ndarray:
    """Sum of squared differences of the stream at every depth, (depths,)."""
    by_batch = [
        [float((x - y).square().sum()) for x, y in zip(one, other, strict=True)]
        for one, other in zip(base.stream, seen.stream, strict=True)
    ]
    return np.asarray(np.array(by_batch).sum(axis=0))


def logit_error(base: Seen, seen: Seen) -> float:
    """Root mean square of the logits' change."""
    return float(np.sqrt(np.mean((np.concatenate(base.logits) - np.concatenate(seen.logits)) ** 2)))


def kl(base: Seen, seen: Seen) -> float:
    """Mean divergence of the answers, in nats."""
    return float(np.mean(divergence(np.concatenate(base.logits), np.concatenate(seen.logits))))
