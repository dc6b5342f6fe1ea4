"""Calibration that saw too little, or what it should not have seen."""

from collections.abc import Iterator

from quantlab.alarms.alarm import Alarm, Evidence, worst
from quantlab.quant.grid import AffineGrid

FEWEST_ROWS = (
    16  # with 8 rows, and with one, min-max ranges are those of the draw: 50.6 to 82.0 % on one network
)


def uncalibrated_site(evidence: Evidence) -> Iterator[Alarm]:
    """Sites that calibration has not reached, or where it saw one value only."""
    sketches = [(item.site, evidence.sketches[item.site]) for item in evidence.plan.activations]
    blind = [f"{name} (never reached)" for name, sketch in sketches if sketch.count == 0]
    blind += [
        f"{name} (only {sketch.min.min().item():g})"
        for name, sketch in sketches
        if sketch.count and sketch.min.min() == sketch.max.max()
    ]
    if blind:
        yield Alarm(
            "uncalibrated_site", f"calibration saw nothing at {len(blind)} of {len(sketches)}: {worst(blind)}"
        )


def few_calibration_rows(evidence: Evidence) -> Iterator[Alarm]:
    """Ranges that come from a handful of rows."""
    rows = evidence.config["calibration"]["samples"]
    ranges = sum(isinstance(item.grid, AffineGrid) for item in evidence.plan.activations)
    if ranges and rows < FEWEST_ROWS:
        yield Alarm("few_calibration_rows", f"the ranges of {ranges} sites come from {rows} rows")


def padding_counted(evidence: Evidence) -> Iterator[Alarm]:
    """Ranges and outlier statistics that count padding."""
    if evidence.config["calibration"]["padding"] == "included":
        yield Alarm("padding_counted", "padding counts in the ranges and in the statistics of outliers")
