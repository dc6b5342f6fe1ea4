"""Alarms about perplexities and image processors."""

import numpy as np
import pytest
from planted import names
from transformers import ViTImageProcessor

from quantlab.tasks.image_files import processor_gaps
from quantlab.tasks.scores import Kind

LABELS = np.zeros(12, np.int64)


def windows(level: float, spread: float) -> np.ndarray:
    nll = 511 * (level + spread * np.random.default_rng(0).normal(size=12))
    return np.stack([nll, np.full(12, 511.0), np.full(12, 400.0)], axis=1)


def raised(level: float, spread: float) -> list[str]:
    """What a trial raises whose windows lose ``level`` nats a token, where FP32's lose 3.5."""
    metrics = {"perplexity": np.exp(level), "perplexity_fp32": np.exp(3.5), "unigram_perplexity": 800.0}
    return names(
        kind=Kind.WINDOWS,
        logits=windows(level, spread),
        reference=windows(3.5, 0.3),
        labels=LABELS,
        metrics=metrics,
        config={
            "calibration": {"samples": 64, "padding": "masked"},
            "task": {"name": "perplexity", "metrics": ["perplexity"]},
        },
    )


@pytest.mark.parametrize("level, alarms", [(4.0, []), (8.0, ["unigram_perplexity"])])
def test_unigram_perplexity(level: float, alarms: list[str]) -> None:
    assert raised(level, 0.3) == alarms


@pytest.mark.parametrize("spread, alarms", [(0.1, []), (0.001, ["windows_alike"])])
def test_windows_alike(spread: float, alarms: list[str]) -> None:
    assert raised(4.0, spread) == alarms


def test_processor_mismatch() -> None:
    size = {"height": 8, "width": 8}
    assert processor_gaps(ViTImageProcessor(size=size)) == ""
    assert processor_gaps(ViTImageProcessor(size=size, do_normalize=False)) == "it does not normalize"
    assert names(tags={"processor_mismatch": "it does not resize"}) == ["processor_mismatch"]
