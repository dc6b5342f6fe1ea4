"""Published numbers to hold ours against, and what they really measured. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


K = "arXiv 2603.04308"
FP32 = "FP32"  # the method of a network that is not quantized
OS_PLUS = "OS+ (arXiv 2304.09145, table 7)"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What tells networks of one family apart."""

    model_type: str
    layers: int
    hidden_size: int


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A number that ours should come near where task, network and setting are the same."""

    task: str
    architecture: Architecture
    metric: str
    bits: str  # of weights and activations
    method: str
    value: float  # a fraction
    source: str
    definition: str = ""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of the table of arXiv 2603.04308: BERT-base, QNLI, 5,463 pairs, RTX 3050 6 GB, batches of 8 x
    128."""

    name: str
    accuracy: float  # a fraction
    measured: str  # what the row really is, read in its code
    p50_ms: float | None = None
    p95_ms: float | None = None
    peak_vram_mb: float | None = None
    size_mb: float | None = None


BERT_BASE = Architecture(model_type="bert", layers=12, hidden_size=768)


def _os_plus(bits: str, weights: str, **accuracies: float) -> tuple[Anchor, ...]:
    return tuple(
        Anchor(
            task="qnli",
            architecture=BERT_BASE,
            metric="accuracy",
            bits=bits,
            method=method.replace("_", " "),
            value=percent / 100,
            source=OS_PLUS,
            definition=f"{weights}128 calibration samples",
        )
        for method, percent in accuracies.items()
    )


TENSOR, CHANNEL = "one range a weight, ", "one range a weight's output channel, "
ANCHORS = (
    Anchor(
        task="qnli",
        architecture=BERT_BASE,
        metric="accuracy",
        bits=FP32,
        method=FP32,
        value=0.918,
        source=OS_PLUS,
        definition="fine-tuned, not quantized",
    ),
    *_os_plus("INT8", TENSOR, min_max=89.0, OMSE=89.7, PEG=91.1, OS=90.2, **{"OS+": 91.1}),
    *_os_plus("INT8", CHANNEL, min_max=90.8, OMSE=91.1, percentile=91.3, OS=91.5, **{"OS+": 91.6}),
    *_os_plus("INT6", "", min_max=65.2, OMSE=84.7, percentile=79.4, OS=89.8, **{"OS+": 90.9}),
    *_os_plus("INT4", "", min_max=50.6, OMSE=52.2, percentile=61.5, OS=72.5, **{"OS+": 85.4}),
)

FAKE = "FP32 arithmetic on quantized values: neither latency, memory nor size are INT8's"
ONE_SIDED = (
    "range [p-th percentile, maximum], clamped at 0: every negative activation and weight becomes 0; "
    "four values of p, "
    "one loss to 16 digits, always the majority class"
)
GROUPS = "never permuted; contiguous groups at 58 of 65 sites"
PAPER_TABLE = (
    PaperRow(
        name=FP32,
        accuracy=0.8966,
        p50_ms=58.38,
        p95_ms=59.08,
        peak_vram_mb=483.7,
        size_mb=417.7,
        measured="the fine-tuned network; OS+ has 91.8 % for it",
    ),
    PaperRow(
        name="W8A8 min-max",
        accuracy=0.5433,
        p50_ms=58.61,
        p95_ms=59.13,
        peak_vram_mb=485.5,
        size_mb=418.3,
        measured=f"symmetric, running min-max of one padded batch of 8, attention internals in FP32; {FAKE}",
    ),
    PaperRow(
        name="mixed precision",
        accuracy=0.8942,
        p50_ms=58.77,
        p95_ms=59.55,
        peak_vram_mb=486.3,
        size_mb=418.3,
        measured=f"the same with x, h and y on 16-bit integer grids, not FP16; {FAKE}",
    ),
    PaperRow(name="PEG K=2", accuracy=0.4946, measured=GROUPS),
    PaperRow(
        name="PEG K=3",
        accuracy=0.6612,
        p50_ms=58.97,
        p95_ms=59.81,
        peak_vram_mb=486.3,
        size_mb=419.6,
        measured=f"{GROUPS}; {FAKE}",
    ),
    PaperRow(name="PEG K=4", accuracy=0.8618, measured=GROUPS),
    PaperRow(
        name="percentile 99.0, 99.5, 99.9, 99.99",
        accuracy=0.5054,
        p50_ms=59.12,
        p95_ms=59.77,
        peak_vram_mb=486.3,
        size_mb=418.3,
        measured=f"{ONE_SIDED}; {FAKE}",
    ),
)


def architecture_of(config: PretrainedConfig) -> Architecture:
    """A model's."""
    return Architecture(
        model_type=config.model_type, layers=config.num_hidden_layers, hidden_size=config.hidden_size
    )


def anchors_of(task: str, config: PretrainedConfig) -> tuple[Anchor, ...]:
    """What was published for a task and a model's architecture."""
    architecture = architecture_of(config)
    return tuple(anchor for anchor in ANCHORS if (anchor.task, anchor.architecture) == (task, architecture))


def fp32_anchor(task: str, config: PretrainedConfig) -> Anchor | None:
    """What FP32 should come near; None where nothing is known."""
    return next((anchor for anchor in anchors_of(task, config) if anchor.method == FP32), None)
