"""Massive activations: where a network's largest values are, by site, position and channel, and the tokens
that attention and the residual stream single out (Sun et al. 2024, arXiv 2402.17762; Darcet et al. 2023,
arXiv 2309.16588)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantlab.analysis.channels import real_tokens, run_all, stream_sites
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.network.taps import RelativePositions, Scores, Tap, tapped
from quantlab.quant.sketch import Sketch
from quantlab.tasks.batching import Batch
from quantlab.trial.material import Material

TIMES_MEDIAN, LEAST = 1000.0, 100.0  # of a massive activation's magnitude: Sun et al. 2024, section 2
HIGH_NORM = 5.0  # a token stands out beyond this multiple of its depth's median norm
POSITIONS = 8  # that have a row of their own; later ones share rows by powers of two


@dataclass
class Extreme:
    """The largest magnitude seen at a site, and where it was."""

    value: float = 0.0
    position: int = -1
    channel: int = -1
    token: str = ""


@dataclass
class ByPosition:
    """Norms of the residual stream's tokens at one depth, and what the next layer attends to."""

    norms: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    attention: np.ndarray | None = None  # (heads, positions): probability from valid queries
    queries: float = 0.0


def token_mask(batch: Batch, tokens: int) -> Tensor:
    """Which of a batch's tokens are no padding, bool (rows, tokens); images have none."""
    mask, rows = real_tokens(batch), len(next(iter(batch.inputs.values())))
    return torch.ones(rows, tokens, dtype=torch.bool) if mask is None else mask


@torch.inference_mode()
def massive_tables(
    material: Material, batches: Sequence[Batch], sketches: Mapping[str, Sketch]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the tables ``massive`` and ``positions``, from one pass.

    ``massive``: one row a site that has tokens, the furthest from its median first: the largest value, its
    magnitude over the median magnitude of the site, and its token, position and channel. ``massive`` says
    whether it is a massive activation: above 100 and 1,000 times the median.

    ``positions``: one row a depth of the residual stream and a position, or a range of later ones: ``norm``,
    the mean Euclidean norm of a token; ``times_median``, that over the depth's median norm; ``attention`` and
    ``attention_head``, the share of the next layer's attention that the positions get, over all heads and in
    the head that gives them most; ``high_norm``, the share of tokens there beyond 5 times the median norm.
    """
    stream = stream_sites(material)
    extremes = {
        site.name: Extreme()
        for site in material.sites
        if not isinstance(site.tap, Scores | RelativePositions) and site.name in sketches
    }
    depths = [ByPosition() for _ in stream]
    now: dict[str, Batch] = {}  # the batch that runs, for the hooks

    def look(site: Site, depth: int | None, x: Tensor) -> Tensor:
        rows = len(next(iter(now["batch"].inputs.values())))
        seen = x.detach() if x.ndim == 3 else x.detach().reshape(rows, -1, x.shape[-1])
        if x.ndim in (2, 3) and seen.shape[1] > 1:
            mask = token_mask(now["batch"], seen.shape[1]).to(x.device)
            if mask.shape == seen.shape[:2]:
                _largest(extremes[site.name], seen, mask, now["batch"], material)
                if depth is not None:
                    _norms(depths[depth], seen, mask)
        return x

    def attend(depth: ByPosition, probs: Tensor) -> Tensor:
        mask = token_mask(now["batch"], probs.shape[-1]).to(probs.device)
        paid = torch.einsum("bhqk,bq->hk", probs.float(), mask.float()).cpu().double().numpy()
        if depth.attention is not None:
            wide = np.zeros((len(paid), max(paid.shape[1], depth.attention.shape[1])))
            wide[:, : paid.shape[1]] += paid
            wide[:, : depth.attention.shape[1]] += depth.attention
            paid = wide
        depth.attention = paid
        depth.queries += float(mask.sum())
        return probs

    number = {site.name: depth for depth, site in enumerate(stream)}
    taps: dict[Tap, TensorFunction] = {
        site.tap: partial(look, site, number.get(site.name))
        for site in material.sites
        if site.name in extremes
    }
    probs = {site.name: site.made_at for site in material.sites}
    for layer, depth in enumerate(depths[:-1]):
        if (tap := probs.get(f"{layer}.attn.probs")) is not None:
            taps[tap] = partial(attend, depth)
    with tapped(material.model, taps):
        run_all(material, batches, lambda batch: now.update(batch=batch))
    return _massive(extremes, sketches), _positions(stream, depths)


def _largest(extreme: Extreme, x: Tensor, mask: Tensor, batch: Batch, material: Material) -> None:
    magnitudes = x.abs().amax(-1).masked_fill(~mask, -1)
    place = int(magnitudes.argmax())
    row, position = divmod(place, x.shape[1])
    if float(magnitudes[row, position]) <= abs(extreme.value):
        return
    channel = int(x[row, position].abs().argmax())
    extreme.value, extreme.position, extreme.channel = float(x[row, position, channel]), position, channel
    if "input_ids" in batch.inputs:
        number = int(batch.inputs["input_ids"][row, position])
        extreme.token = str(material.loaded.processor.convert_ids_to_tokens([number])[0])


def _norms(depth: ByPosition, x: Tensor, mask: Tensor) -> None:
    depth.norms.append(torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)[mask].cpu().numpy())
    depth.positions.append(torch.arange(x.shape[1]).expand(len(x), -1)[mask.cpu()].numpy())


def _massive(extremes: Mapping[str, Extreme], sketches: Mapping[str, Sketch]) -> pd.DataFrame:
    rows = []
    for name, extreme in extremes.items():
        if extreme.position < 0:
            continue
        median, magnitude = sketches[name].magnitude_percentile(50), abs(extreme.value)
        rows.append(
            {
                "site": name,
                "layer": name.split(".", 1)[0],
                "value": extreme.value,
                "median": median,
                "times_median": magnitude / median if median else np.inf,
                "position": extreme.position,
                "token": extreme.token,
                "channel": extreme.channel,
                "massive": magnitude > LEAST and magnitude > TIMES_MEDIAN * median,
            }
        )
    columns = ["site", "layer", "value", "median", "times_median", "position", "token", "channel", "massive"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("value", key=np.abs, ascending=False, ignore_index=True)


def _positions(stream: Sequence[Site], depths: Sequence[ByPosition]) -> pd.DataFrame:
    rows = []
    for number, (site, depth) in enumerate(zip(stream, depths, strict=True)):
        if not depth.norms:
            continue
        norms, positions = np.concatenate(depth.norms), np.concatenate(depth.positions)
        median = float(np.median(norms))
        for first, last in position_ranges(int(positions.max()) + 1):
            there = norms[(positions >= first) & (positions <= last)]
            paid = None if depth.attention is None else depth.attention[:, first : last + 1].sum(1)
            rows.append(
                {
                    "depth": number,
                    "site": site.name,
                    "position": f"{first}" if first == last else f"{first} to {last}",
                    "tokens": len(there) / len(norms),
                    "norm": float(there.mean()),
                    "times_median": float(there.mean()) / median if median else np.nan,
                    "high_norm": float((there > HIGH_NORM * median).mean()),
                    "attention": np.nan if paid is None else float(paid.mean()) / depth.queries,
                    "attention_head": np.nan if paid is None else float(paid.max()) / depth.queries,
                }
            )
    return pd.DataFrame(rows)


def position_ranges(tokens: int) -> list[tuple[int, int]]:
    """The rows of a table by position, first and last each: 0 to 7 alone, then up to powers of two."""
    ends = [*range(min(POSITIONS, tokens))]
    last = POSITIONS
    ranges = [(end, end) for end in ends]
    while last < tokens:
        ranges.append((last, min(2 * last, tokens) - 1))
        last *= 2
    return ranges
