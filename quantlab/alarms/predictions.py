"""Alarms about answers: models that answer one class or NaN, and results that show less than they seem to."""

import math
from collections.abc import Iterator

import numpy as np

from quantlab.alarms.alarm import Alarm, Evidence
from quantlab.alarms.published import fp32_anchor
from quantlab.evaluation.answering import CONSTANT_SHARE, largest_share
from quantlab.evaluation.significance import DETECTABLE, compare, examples_needed
from quantlab.plan.plan import QuantPlan
from quantlab.tasks.scores import SCORES, Kind

FEW_DISTINCT = 10  # different rows of logits; the paper's percentile trials have four
FAR = 0.01  # of accuracy, beyond the interval; seeds of one recipe differ by less; of perplexity, either way


def constant_prediction(evidence: Evidence) -> Iterator[Alarm]:
    """Nearly all answers are one class."""
    share = largest_share(evidence.logits.argmax(-1)) if evidence.kind is Kind.CLASSES else 0.0
    if share >= CONSTANT_SHARE:
        yield Alarm("constant_prediction", f"{share:.1%} of the answers are the same class")


def majority_accuracy(evidence: Evidence) -> Iterator[Alarm]:
    """Accuracy at most one standard error above that of always answering the most frequent class.

    Checked for the quantized and the FP32 model.
    """
    if evidence.kind is not Kind.CLASSES:
        return
    majority = largest_share(evidence.labels)
    error = float(np.sqrt(majority * (1 - majority) / len(evidence.labels)))
    for name, logits in (
        ("majority_accuracy", evidence.logits),
        ("majority_accuracy_fp32", evidence.reference),
    ):
        accuracy = float(np.mean(logits.argmax(-1) == evidence.labels))
        if accuracy <= majority + error:
            yield Alarm(
                name,
                f"accuracy is {accuracy:.4f}, always answering the most frequent class gives {majority:.4f}",
            )


def collapsed_logits(evidence: Evidence) -> Iterator[Alarm]:
    """At most :data:`FEW_DISTINCT` different rows of logits, where FP32 has at least ten times as many."""
    if evidence.kind not in (Kind.CLASSES, Kind.REGRESSION):
        return
    distinct, before = (len(np.unique(logits, axis=0)) for logits in (evidence.logits, evidence.reference))
    if distinct <= min(FEW_DISTINCT, before / 10):
        yield Alarm(
            "collapsed_logits",
            f"{len(evidence.logits):,} answers have {distinct} different logits, FP32's {before:,}",
        )


def nan_logits(evidence: Evidence) -> Iterator[Alarm]:
    """Logits that are NaN or infinite."""
    for what, logits in (("quantized", evidence.logits), ("FP32", evidence.reference)):
        bad = int((~np.isfinite(logits).all(axis=-1)).sum())
        if bad:
            yield Alarm(
                "nan_logits", f"the {what} logits of {bad:,} of {len(logits):,} examples are NaN or infinite"
            )


def fp32_far_from_published(evidence: Evidence) -> Iterator[Alarm]:
    """The FP32 model's score is far from the published one: checkpoint, data or evaluation differ.

    Far is more than :data:`FAR` outside the 95 % interval of the measured accuracy (Wilson 1927: Probable
    inference, the law of succession, and statistical inference, JASA 22). Of a perplexity it is a ratio of
    more than 1 + :data:`FAR`, where the whole text was evaluated in the published windows.
    """
    if evidence.kind is Kind.WINDOWS:
        yield from _far_perplexity(evidence)
        return
    config, accuracy = evidence.model.config, evidence.metrics.get("accuracy_fp32")
    anchor = fp32_anchor(evidence.config["task"]["name"], config)
    if accuracy is None or anchor is None:
        return
    from statsmodels.stats.proportion import proportion_confint

    n = len(evidence.labels)
    low, high = proportion_confint(round(accuracy * n), n, method="wilson")
    if not low - FAR <= anchor.value <= high + FAR:
        yield Alarm(
            "fp32_far_from_published",
            f"FP32 has an accuracy of {accuracy:.2%} ({low:.2%} to {high:.2%} with n = {n:,}), "
            f"{anchor.source} published {anchor.value:.2%}",
        )


def _far_perplexity(evidence: Evidence) -> Iterator[Alarm]:
    task, perplexity = evidence.config["task"], evidence.metrics.get("perplexity_fp32")
    window = task.get("window")
    apart = task.get("documents") == "apart" or task.get("stride") not in (None, window)
    anchor = None if apart else fp32_anchor("perplexity", evidence.model.config, window)
    if perplexity is None or anchor is None:
        return
    # Words in the remainder of the text, and those that begin with a window's first token, do not count.
    uncounted = anchor.words - float(evidence.reference[:, 2].sum())
    if not 0 <= uncounted <= window + len(evidence.reference):
        return
    if abs(math.log(perplexity / anchor.value)) > math.log1p(FAR):
        yield Alarm(
            "fp32_far_from_published",
            f"FP32 has a perplexity of {perplexity:.2f} in windows of {window:,}, {anchor.source} has "
            f"{anchor.value:.2f} for {anchor.definition}",
        )


def too_few_examples(evidence: Evidence) -> Iterator[Alarm]:
    """A loss that cannot be told from none, on fewer examples than it takes to detect half a point."""
    primary, n = evidence.config["task"]["metrics"][0], len(evidence.labels)
    relative = SCORES[primary].relative
    suffix, none = ("_ratio", 1.0) if relative else ("_drop", 0.0)
    found = [evidence.metrics.get(f"{primary}{suffix}{end}") for end in ("", "_ci95_low", "_ci95_high")]
    numbers = [value - none for value in found if value is not None]
    if "verdict" in evidence.tags:  # the trial decided its own question, with as many as that took
        return
    if evidence.plan == QuantPlan() or len(numbers) < 3 or not numbers[1] <= 0 <= numbers[2]:
        return
    drop, low, high = numbers
    what, unit = ("rise", " %") if relative else ("drop", " points")
    needed = _needed(evidence, primary, low, high)
    if needed is not None and needed > n:
        yield Alarm(
            "too_few_examples",
            f"a {what} of {100 * drop:.2f}{unit} ({100 * low:.2f} to {100 * high:.2f}) cannot be told from "
            f"none with n = {n:,}: it takes about {needed:,} to see {100 * DETECTABLE:g}{unit}",
        )


def label_order_assumed(evidence: Evidence) -> Iterator[Alarm]:
    """Names do not say which logit is which label, so the order of the logits is assumed."""
    if evidence.tags.get("label_order") == "assumed":
        yield Alarm(
            "label_order_assumed",
            "no names match logits with labels: the checkpoint's order is taken to be the task's",
        )


def tokenizer_mismatch(evidence: Evidence) -> Iterator[Alarm]:
    """The tokenizer's files do not fit its vocabulary or the model, which makes FP32 and all else worse."""
    if mismatch := evidence.tags.get("tokenizer_mismatch"):
        yield Alarm(
            "tokenizer_mismatch", f"the tokenizer is not the one that the model was trained with: {mismatch}"
        )


def _needed(evidence: Evidence, primary: str, low: float, high: float) -> int | None:
    if primary == "accuracy":
        return compare(primary, evidence.reference, evidence.logits, evidence.labels).needed
    same = np.array_equal(evidence.logits, evidence.reference)
    return None if same else examples_needed(low, high, len(evidence.labels))
