"""Alarms: signs that a trial's numbers do not mean what they seem to.

Each would have caught a mistake in a published result.
"""

from quantlab.alarms.alarm import Alarm, Evidence
from quantlab.alarms.calibrating import (
    few_calibration_rows,
    fewer_rows_than_inputs,
    padding_counted,
    uncalibrated_site,
)
from quantlab.alarms.deploying import (
    kernels_missing,
    machine_busy,
    products_in_float,
    runtime_fell_back,
    runtime_saturates,
    simulated_latency,
    size_not_smaller,
)
from quantlab.alarms.predictions import (
    collapsed_logits,
    constant_prediction,
    fp32_far_from_published,
    label_order_assumed,
    majority_accuracy,
    nan_logits,
    tokenizer_mismatch,
    too_few_examples,
)
from quantlab.alarms.quantization import (
    fp16_overflow,
    one_sided_range,
    saturation,
    unpermuted_groups,
    wasted_levels,
    zeroed_weights,
)
from quantlab.alarms.windows import processor_mismatch, unigram_perplexity, windows_alike

ALARMS = (
    constant_prediction,
    majority_accuracy,
    collapsed_logits,
    unigram_perplexity,
    windows_alike,
    nan_logits,
    one_sided_range,
    zeroed_weights,
    saturation,
    wasted_levels,
    unpermuted_groups,
    fp16_overflow,
    uncalibrated_site,
    few_calibration_rows,
    fewer_rows_than_inputs,
    padding_counted,
    products_in_float,
    simulated_latency,
    runtime_fell_back,
    runtime_saturates,
    size_not_smaller,
    kernels_missing,
    machine_busy,
    label_order_assumed,
    tokenizer_mismatch,
    processor_mismatch,
    fp32_far_from_published,
    too_few_examples,
)

__all__ = ["ALARMS", "Alarm", "Evidence", "raised_alarms"]


def raised_alarms(evidence: Evidence) -> tuple[Alarm, ...]:
    """Runs all checks on a trial. Returns the alarms, in the order of :data:`ALARMS`."""
    return tuple(alarm for check in ALARMS for alarm in check(evidence))
