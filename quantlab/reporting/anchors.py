"""Tables of published numbers, each beside our trials with the nearest settings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from quantlab.alarms.published import FP32, PAPER, Anchor, paper_table, published_anchors
from quantlab.reporting.comparing import ComparedTrial
from quantlab.reporting.sections import Table, as_table
from quantlab.reporting.trial_table import number
from quantlab.results.reading import Study

Config = Mapping[str, Any]
PAPER_TASK = "qnli"
SHOWN = 3  # our trials beside one published row, at most


def published_tables(study: Study, rows: Sequence[ComparedTrial]) -> list[Table]:
    """Tables of the numbers that were published for the study's task; none where none are known."""
    task = str(study.finished[0].config["task"].get("name"))
    if task != PAPER_TASK or study.primary != "accuracy":
        return []
    usable = [row for row in rows if row.trial.summary is not None]
    return [_paper(usable), *_anchors(task, usable)]


def _paper(rows: Sequence[ComparedTrial]) -> Table:
    fp32 = paper_table()[0].accuracy
    table = pd.DataFrame(
        [
            {
                "published row": row.name,
                "published (%)": number(100 * row.accuracy, ".2f"),
                "less its FP32 (points)": number(100 * (row.accuracy - fp32), "+z.2f"),
                **_ours([own for own in rows if paper_row(own.trial.config) == row.name.split(" 99")[0]]),
                "what the published row measured": row.measured,
            }
            for row in paper_table()
        ]
    )
    caption = (
        "BERT-base, all 5,463 pairs, another checkpoint than ours: compare the differences, not the levels. "
    )
    return as_table(
        "paper", f"The table of {PAPER}", table, caption + "Ours are the trials with the nearest settings."
    )


def _anchors(task: str, rows: Sequence[ComparedTrial]) -> list[Table]:
    shown = [
        anchor for anchor in published_anchors() if anchor.task == task and anchor.bits in (FP32, "INT8")
    ]
    if not shown:
        return []
    fp32 = next((anchor.value for anchor in shown if anchor.method == FP32), float("nan"))
    table = pd.DataFrame(
        [
            {
                "published row": f"{anchor.method} {anchor.bits}"
                if anchor.bits != anchor.method
                else anchor.method,
                "published (%)": number(100 * anchor.value, ".1f"),
                "less its FP32 (points)": number(100 * (anchor.value - fp32), "+z.1f"),
                **_ours([own for own in rows if is_like(anchor, own.trial.config)]),
                "definition": anchor.definition,
            }
            for anchor in shown
        ]
    )
    return [as_table("anchors", shown[0].source, table, "BERT-base, 8 bit; another checkpoint than ours.")]


def _ours(rows: Sequence[ComparedTrial]) -> dict[str, str]:
    near = list(rows)[:SHOWN]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return {
        "our trials": ", ".join(row.trial.name for row in near) + more,
        "ours (%)": ", ".join(number(100 * row.value, ".2f") for row in near),
        "less our FP32 (points)": ", ".join(
            filter(None, (number(100 * row.difference, "+z.2f") for row in near))
        ),
    }


def paper_row(config: Config) -> str:
    """The name of the row of arXiv 2603.04308's table with a trial's settings; "" where there is none."""
    method, calibration = component_class(config, "method"), component_class(config, "calibration")
    bits = config["bits"]
    if method == "Fp32":
        return FP32
    if bits["weights"] != 8 or bits["activations"] != 8 or not bits["symmetric"]:
        return ""
    if calibration == "PublishedPercentile":
        return "percentile"
    if calibration not in ("MinMax", "RunningMinMax"):
        return ""
    names = {"Uniform": "W8A8 min-max", "MixedPrecision": "mixed precision"}
    return f"PEG K={config['method'].get('k')}" if method == "Peg" else names.get(method, "")


LIKE: dict[str, Callable[[str, str], bool]] = {
    FP32: lambda method, _: method == "Fp32",
    "min max": lambda method, calibration: method == "Uniform" and calibration == "MinMax",
    "OMSE": lambda method, calibration: method == "Uniform" and calibration == "Mse",
    "percentile": lambda method, calibration: method == "Uniform" and calibration == "Percentile",
    "PEG": lambda method, calibration: method == "Peg" and calibration == "MinMax",
}


def is_like(anchor: Anchor, config: Config) -> bool:
    """Whether a trial has the settings of a published number, as far as the source tells them."""
    method, bits = component_class(config, "method"), config["bits"]
    if anchor.method not in LIKE or not LIKE[anchor.method](method, component_class(config, "calibration")):
        return False
    granularity = "channel" if "output channel" in anchor.definition else "tensor"
    return method == "Fp32" or (
        bits["weights"] == bits["activations"] == 8
        and (bits["weight_granularity"] == granularity and not bits["symmetric"])
    )


def component_class(config: Config, group: str) -> str:
    """The class name of a config group's component: ``Uniform`` for the group ``method``."""
    return str(config[group]["_target_"]).rsplit(".", 1)[1]
