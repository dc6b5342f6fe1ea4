"""Reads ``published.yaml``: published numbers to hold ours against, each with its source and definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PAPER = "arXiv 2603.04308"
FP32 = "FP32"  # the method of a network that is not quantized


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What tells networks of one family apart."""

    model_type: str
    layers: int
    hidden_size: int


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A published number that ours should come near where task, network and setting are the same."""

    task: str
    architecture: Architecture
    metric: str
    bits: str  # of weights and activations
    method: str
    value: float  # a fraction, or a perplexity
    source: str
    definition: str
    words: int = 0  # of a perplexity: how many the text has
    window: int = 0  # of a perplexity: tokens


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of the table of arXiv 2603.04308."""

    name: str
    accuracy: float  # a fraction
    measured: str  # what the row really is, as read in its code
    p50_ms: float | None = None
    p95_ms: float | None = None
    peak_vram_mb: float | None = None
    size_mb: float | None = None


@cache
def published_anchors() -> tuple[Anchor, ...]:
    """All anchors, in the file's order."""
    return tuple(anchor for setting in _published()["anchors"] for anchor in _anchors_of_setting(setting))


@cache
def paper_table() -> tuple[PaperRow, ...]:
    """The table of arXiv 2603.04308, FP32 first."""
    rows = _published()["paper_table"]
    return tuple(PaperRow(**row | {"measured": "; ".join(row["measured"])}) for row in rows)


def anchors_of(task: str, config: PretrainedConfig) -> tuple[Anchor, ...]:
    """What was published for a task and a model's architecture."""
    architecture = Architecture(
        model_type=config.model_type, layers=config.num_hidden_layers, hidden_size=config.hidden_size
    )
    return tuple(
        anchor for anchor in published_anchors() if (anchor.task, anchor.architecture) == (task, architecture)
    )


def fp32_anchor(task: str, config: PretrainedConfig, window: int = 0) -> Anchor | None:
    """The published number of the FP32 network, of a perplexity that in windows of ``window`` tokens; None
    where none is known."""
    found = (anchor for anchor in anchors_of(task, config) if anchor.method == FP32)
    return next((anchor for anchor in found if anchor.window == window), None)


@cache
def _published() -> Mapping[str, Any]:
    content: dict[str, Any] = yaml.safe_load((files("quantlab.alarms") / "published.yaml").read_text("utf-8"))
    return content


def _anchors_of_setting(setting: Mapping[str, Any]) -> Iterator[Anchor]:
    shared = {name: value for name, value in setting.items() if name not in ("values", "architecture")}
    architecture = Architecture(**_published()["architectures"][setting["architecture"]])
    for method, value in setting["values"].items():
        yield Anchor(**shared, architecture=architecture, method=method, value=value)
