"""Alarms about calibration that observed too little, or what it should leave out."""

from collections.abc import Iterator

from quantlab.alarms.alarm import Alarm, Evidence, first_few
from quantlab.network.readers import readers

# Fewer rows leave min-max ranges to chance: with 1 or 8 rows one network got 50.6 to 82.0 % accuracy.
FEWEST_ROWS = 16


def uncalibrated_site(evidence: Evidence) -> Iterator[Alarm]:
    """Sites that calibration did not reach, or where it observed a single value."""
    sketches = [(item.site, evidence.sketches[item.site]) for item in evidence.plan.activations]
    blind = [f"{name} (never reached)" for name, sketch in sketches if sketch.count == 0]
    blind += [
        f"{name} (only {sketch.min.min().item():g})"
        for name, sketch in sketches
        if sketch.count and sketch.min.min() == sketch.max.max()
    ]
    if blind:
        yield Alarm(
            "uncalibrated_site",
            f"calibration saw nothing at {len(blind)} of {len(sketches)}: {first_few(blind)}",
        )


def few_calibration_rows(evidence: Evidence) -> Iterator[Alarm]:
    """Ranges calibrated on a handful of rows."""
    rows = evidence.config["calibration"]["samples"]
    ranges = sum(item.grid.ranged for item in evidence.plan.activations)
    if ranges and rows < FEWEST_ROWS:
        yield Alarm("few_calibration_rows", f"the ranges of {ranges} sites come from {rows} rows")


def fewer_rows_than_inputs(evidence: Evidence) -> Iterator[Alarm]:
    """Weights whose integers were chosen by fewer rows than they have inputs: damping decides some of
    them."""
    chosen = {item.parameter for item in evidence.plan.weights if item.integers is not None}
    read = readers(evidence.model) if chosen else {}
    short = [
        f"{path} ({evidence.sketches[site].count} rows, {channels} inputs)"
        for path, site in read.items()
        if f"{path}.weight" in chosen
        and evidence.sketches[site].count < (channels := evidence.sketches[site].channels)
    ]
    if short:
        yield Alarm(
            "fewer_rows_than_inputs",
            f"the integers of {len(short)} weights come from fewer rows than they have inputs: "
            f"{first_few(short)}",
        )


def padding_counted(evidence: Evidence) -> Iterator[Alarm]:
    """Ranges and outlier statistics that include padding."""
    if evidence.config["calibration"]["padding"] == "included":
        yield Alarm("padding_counted", "padding counts in the ranges and in the statistics of outliers")
