"""Outliers and attention by kind of token (Bondarenko et al. 2021, section 3)."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quantlab.analysis.channels import run_all, sum_sites
from quantlab.calibration.outlier_statistics import dominant_channels, jaccard
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.network.taps import Tap, tapped
from quantlab.quant.sketch import Sketch
from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import IMAGES, TOKENS
from quantlab.trial.material import Material

WORD, PUNCTUATION, PADDING = "word", "punctuation", "padding"
FIRST = "first"  # of a decoder's tokens: every other one attends to it
CLASS, REGISTER, PATCH = "[CLS]", "register", "patch"  # of a vision transformer, in this order
UNDECODED = "\N{REPLACEMENT CHARACTER}"
SIGMAS = 6.0
DRAWN_CHANNELS, DRAWN_TOKENS = 16, 64


class Kinds(Protocol):
    """Kinds of tokens; the last one is padding."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def one_hot(self, batch: Batch) -> Tensor:
        """The kinds of a batch's tokens, one-hot, (rows, tokens, kinds), float."""


@dataclass(frozen=True, kw_only=True)
class PatchKinds:
    """Kinds of a vision transformer's tokens: the class, registers, and patches of the image."""

    registers: int
    patch: int  # pixels of a patch's side
    names: tuple[str, ...] = (CLASS, REGISTER, PATCH, PADDING)

    def one_hot(self, batch: Batch) -> Tensor:
        rows, _, height, width = batch.inputs["pixel_values"].shape
        patches = (height // self.patch) * (width // self.patch)
        kinds = np.repeat([0, 1, 2], [1, self.registers, patches])
        return torch.from_numpy(np.eye(len(self.names), dtype=np.float32)[kinds]).expand(rows, -1, -1)


@dataclass(frozen=True, kw_only=True)
class TokenKinds:
    """Kinds of tokens: each special token is a kind of its own; then punctuation, words, a decoder's first
    token, and padding last."""

    names: tuple[str, ...]
    of_id: np.ndarray  # (vocabulary,), the number of each token's kind

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, decoder: bool = False) -> "TokenKinds":
        """The kinds of a tokenizer's vocabulary; byte-level pieces are decoded first."""
        special = [token for token in tokenizer.all_special_tokens if token != tokenizer.pad_token]
        names = (*special, PUNCTUATION, WORD, *([FIRST] if decoder else []), PADDING)
        vocabulary = tokenizer.get_vocab()
        of_id = np.full(max(vocabulary.values()) + 1, names.index(WORD))
        for token, number in vocabulary.items():
            if token in special:
                of_id[number] = special.index(token)
            elif is_punctuation(tokenizer.convert_tokens_to_string([token])):
                of_id[number] = names.index(PUNCTUATION)
        return cls(names=names, of_id=of_id)

    def one_hot(self, batch: Batch) -> Tensor:
        """The kinds of a batch's tokens, one-hot, (rows, tokens, kinds), float."""
        kinds = self.of_id[batch.inputs["input_ids"].numpy()]
        if FIRST in self.names:
            kinds[:, 0] = self.names.index(FIRST)
        kinds[~batch.inputs["attention_mask"].bool().numpy()] = self.names.index(PADDING)
        return torch.from_numpy(np.eye(len(self.names), dtype=np.float32)[kinds])


def is_punctuation(text: str) -> bool:
    """True if a token's text consists of punctuation and symbols (Unicode categories P and S).

    The mark of a word piece (``##``), spaces and undecodable bytes do not count as such.
    """
    signs = text.strip().removeprefix("##")
    return bool(signs) and all(unicodedata.category(sign)[0] in "PS" and sign != UNDECODED for sign in signs)


@dataclass
class KindTally:
    """Sums over the tokens at one depth, by kind."""

    tokens: np.ndarray
    outliers: np.ndarray
    energy: np.ndarray
    attention: np.ndarray | None = None  # probability from the next layer's valid queries, over all heads
    jaccard: float = 0.0  # sum over tokens

    @classmethod
    def of(cls, kinds: int) -> "KindTally":
        """All sums zero."""
        return cls(tokens=np.zeros(kinds), outliers=np.zeros(kinds), energy=np.zeros(kinds))


@torch.inference_mode()
def token_table(
    material: Material, batches: Sequence[Batch], sketches: Mapping[str, Sketch]
) -> tuple[pd.DataFrame, list[float]]:
    """One row a depth (its residual sum) and kind of token; and, by depth, the mean Jaccard index between a
    token's strongest channels and the dominant channels, NaN without dominant channels.

    Outliers are elements beyond 6 standard deviations of the depth's elements. ``rate`` is their share of the
    kind's elements; ``outliers``, ``energy``, ``attention`` and ``tokens`` are the kind's shares of the
    depth's total without padding.
    """
    kinds, sites = kinds_of(material), sum_sites(material)
    tallies = [KindTally.of(len(kinds.names)) for _ in sites]
    now: dict[str, Tensor] = {}  # the kinds in the batch that runs, for the hooks

    def look(site: Site, tally: KindTally, x: Tensor) -> Tensor:
        _count(tally, x.float().cpu(), now["kinds"], sketches[site.name])
        return x

    def attend(tally: KindTally, probs: Tensor) -> Tensor:
        one_hot = now["kinds"]
        queries = 1 - one_hot[..., -1]
        paid = torch.einsum("bhqk,bq,bkn->n", probs.float().cpu(), queries, one_hot).numpy()
        tally.attention = paid + (0 if tally.attention is None else tally.attention)
        return probs

    taps: dict[Tap, TensorFunction] = {
        s.tap: partial(look, s, t) for s, t in zip(sites, tallies, strict=True)
    }
    by_name = {site.name: site.made_at for site in material.sites}
    for layer, tally in enumerate(tallies[:-1]):
        if (tap := by_name.get(f"{layer}.attn.probs")) is not None:
            taps[tap] = partial(attend, tally)
    with tapped(material.model, taps):
        run_all(material, batches, lambda batch: now.update(kinds=kinds.one_hot(batch)))
    rows = [
        row
        for d, (tally, site) in enumerate(zip(tallies, sites, strict=True))
        for row in _rows(d, site, tally, kinds.names)
    ]
    return pd.DataFrame(rows), [t.jaccard / t.tokens[:-1].sum() for t in tallies]


@torch.inference_mode()
def token_channels(material: Material, batch: Batch, site: Site, sketch: Sketch) -> pd.DataFrame:
    """Values of a site's strongest channels at every token of a batch's first row."""
    first_rows: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        first_rows.append(x[0].float().cpu())
        return x

    with tapped(material.model, {site.tap: look}):
        run_all(material, [batch])
    strongest = np.argsort(-sketch.magnitudes(), kind="stable")[:DRAWN_CHANNELS]
    tokens = drawn_tokens(material, batch, len(first_rows[0]))
    return pd.DataFrame(
        [
            {
                "site": site.name,
                "position": p,
                "token": token,
                "channel": int(c),
                "value": float(first_rows[0][p, c]),
            }
            for p, token in enumerate(tokens)
            for c in strongest
        ]
    )


def kinds_of(material: Material) -> Kinds:
    """The kinds of the material's tokens: of words, or of an image's patches."""
    loaded = material.loaded
    if loaded.head == IMAGES:
        config = loaded.model.config
        return PatchKinds(
            registers=int(getattr(config, "num_register_tokens", 0) or 0), patch=int(config.patch_size)
        )
    return TokenKinds.of(loaded.processor, decoder=loaded.head == TOKENS)


def drawn_tokens(material: Material, batch: Batch, count: int) -> list[str]:
    """The first tokens of a batch's first row, without padding; of an image their kinds and numbers."""
    if "input_ids" in batch.inputs:
        mask = batch.inputs["attention_mask"][0].bool()
        ids = batch.inputs["input_ids"][0][mask][:DRAWN_TOKENS].tolist()
        return list(material.loaded.processor.convert_ids_to_tokens(ids))
    kinds = kinds_of(material)
    numbers = kinds.one_hot(batch)[0].argmax(-1).tolist()
    return [f"{kinds.names[kind]} {place}" for place, kind in enumerate(numbers[:count])][:DRAWN_TOKENS]


def _count(tally: KindTally, x: Tensor, one_hot: Tensor, sketch: Sketch) -> None:
    mean, variance, _ = sketch.moments()
    beyond = ((x - mean).abs() > SIGMAS * variance**0.5).sum(-1).float()
    tally.tokens += one_hot.sum((0, 1)).numpy()
    tally.outliers += torch.einsum("bt,btn->n", beyond, one_hot).numpy()
    tally.energy += torch.einsum("bt,btn->n", x.square().sum(-1), one_hot).numpy()
    dominant = dominant_channels(sketch)
    if dominant:
        strongest = x[one_hot[..., -1] == 0].abs().topk(len(dominant), dim=-1).indices
        tally.jaccard += sum(jaccard(row, dominant) for row in strongest.tolist())
    else:
        tally.jaccard = np.nan


def _rows(depth: int, site: Site, tally: KindTally, names: Sequence[str]) -> list[dict[str, object]]:
    valid = np.array([name != PADDING for name in names])

    def share(values: np.ndarray) -> np.ndarray:
        total = values[valid].sum()
        return np.where(valid, values / total if total else np.nan, np.nan)

    attention = np.full(len(names), np.nan) if tally.attention is None else share(tally.attention)
    columns = {
        "tokens": share(tally.tokens),
        "outliers": share(tally.outliers),
        "energy": share(tally.energy),
    }
    rate = tally.outliers / np.maximum(tally.tokens, 1) / site.channels
    return [
        {
            "depth": depth,
            "site": site.name,
            "kind": name,
            **{k: v[i] for k, v in columns.items()},
            "rate": rate[i],
            "attention": attention[i],
        }
        for i, name in enumerate(names)
        if tally.tokens[i]
    ]
