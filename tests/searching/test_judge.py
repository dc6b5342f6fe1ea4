"""A judge of perplexities: a loss in percent, with an interval around it."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantlab.searching.evaluate import CandidateOutcomes
from quantlab.searching.judge import Judge


def test_a_perplexity_is_lost_in_percent() -> None:
    nll = np.random.default_rng(0).normal(48, 2, 20)
    reference = np.stack([nll, np.full(20, 15.0), np.full(20, 12.0)], axis=1)
    worse = reference + [0.3, 0, 0] * np.linspace(0.5, 1.5, 20)[:, None]
    task: Any = SimpleNamespace(metrics=("perplexity",))
    judge = Judge(task=task, labels=np.zeros(20, int), reference=reference)
    measured = judge.measure(CandidateOutcomes(logits=worse, answered=np.ones(20, bool)))
    assert measured.drop == pytest.approx(100 * math.expm1(0.3 / 15))
    assert measured.metric == pytest.approx(math.exp(worse[:, 0].sum() / 300))
    assert measured.low < measured.drop < measured.upper95 < measured.high
    assert not judge.counts_right
    lost = judge.measure(CandidateOutcomes(logits=worse * np.nan, answered=np.ones(20, bool)))
    assert lost.metric == lost.drop == math.inf and math.isnan(lost.low)
