"""Alarms about perplexities: models that know no more of a text than its words' shares, or say one thing."""

from collections.abc import Iterator

import numpy as np

from quantlab.alarms.alarm import Alarm, Evidence
from quantlab.tasks.scores import Kind

UNIGRAM = "unigram_perplexity"  # the metric
ALIKE = 0.1  # of FP32's spread over windows


def unigram_perplexity(evidence: Evidence) -> Iterator[Alarm]:
    """A perplexity at or beyond that of the evaluated text's own shares of tokens, which knows no context."""
    unigram = evidence.metrics.get(UNIGRAM)
    if unigram is None:
        return
    for name, metric in ((UNIGRAM, "perplexity"), (f"{UNIGRAM}_fp32", "perplexity_fp32")):
        found = evidence.metrics.get(metric)
        if found is not None and found >= unigram:
            yield Alarm(
                name,
                f"{metric} is {found:,.1f}; the shares of the text's tokens alone, without any context, "
                f"give {unigram:,.1f}",
            )


def windows_alike(evidence: Evidence) -> Iterator[Alarm]:
    """All windows are predicted equally well, where FP32 tells them apart."""
    if evidence.kind is not Kind.WINDOWS or len(evidence.logits) < 2:
        return
    spread, before = (np.std(each[:, 0] / each[:, 1]) for each in (evidence.logits, evidence.reference))
    if spread < ALIKE * before:
        yield Alarm(
            "windows_alike",
            f"a token's log-likelihood differs by {spread:.2g} nats from window to window, FP32's by "
            f"{before:.2g}: the answers do not depend on the text",
        )


def processor_mismatch(evidence: Evidence) -> Iterator[Alarm]:
    """The image processor leaves out a step without which a network sees other pixels than in training."""
    if mismatch := evidence.tags.get("processor_mismatch"):
        yield Alarm("processor_mismatch", f"the image processor's settings are not whole: {mismatch}")
