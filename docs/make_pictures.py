"""Makes README's table and the pictures that show its numbers, all from one finished sweep.

    python docs/make_pictures.py multirun/sweeps/paper_table-<digits>

writes beside this script:
    results_table.md   README's table
    accuracy.png       README's picture: what each row keeps of the FP32 accuracy
    report.png         the first screen of the report, 1280 pixels wide
Needs playwright and a Chromium: ``--chromium`` names its binary.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

from quantlab.reporting.comparing import ComparedTrial, compared_trials
from quantlab.reporting.options import MAX_DROP
from quantlab.reporting.sources import from_folders
from quantlab.reporting.trial_table import alarm_names
from quantlab.reporting.writing import write_page
from quantlab.results.plots import COLOURS
from quantlab.results.reading import Study, TrialRecord
from quantlab.results.table import SPEED, drop_text, markdown

DOCS = Path(__file__).parent
WIDTH, HEIGHT, SCALE = 1280, 960, 2


def main(arguments: Sequence[str]) -> int:
    """Writes the table and the pictures and prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep that ended")
    parser.add_argument("--output", type=Path, default=DOCS, help="where the files go; docs/ by default")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser that is photographed")
    options = parser.parse_args(arguments)
    study = from_folders([options.sweep])
    rows = compared_trials(study)
    options.output.mkdir(parents=True, exist_ok=True)
    table = options.output / "results_table.md"
    table.write_text(markdown(readme_table(study, rows)), encoding="utf-8")
    picture = options.output / "accuracy.png"
    accuracy_picture(study, rows).savefig(picture, dpi=100 * SCALE)
    report = options.output / "report.png"
    photograph(options.sweep, report, options.chromium)
    print(table, picture, report, sep="\n")
    return 0


def readme_table(study: Study, rows: Sequence[ComparedTrial]) -> pd.DataFrame:
    """README's columns as text. Intervals are each trial's own, as in results.md."""
    return pd.DataFrame([_readme_row(study.primary, row.trial) for row in rows])


def _readme_row(metric: str, trial: TrialRecord) -> dict[str, str]:
    drop, low, high = (100 * trial.number_of(f"{metric}_drop{part}") for part in DROPS)
    speed, slowest, fastest = (trial.number_of(f"speedup_{part}") for part in SPEEDS)
    timed = f"{speed:.2f} ({slowest:.2f} to {fastest:.2f})" if math.isfinite(speed) else ""
    return {
        "name": trial.name,
        f"{metric.replace('_', ' ')} %": _number(100 * trial.number_of(metric), ".2f"),
        "drop in points (95 % interval)": "" if trial.reference else drop_text(drop, low, high),
        "same answers %": _number(100 * trial.number_of("agreement_fp32"), ".1f"),
        SPEED: "1" if trial.reference else timed,
        "size MB": _number(trial.number_of("size_bytes") / 1e6, ".1f"),
        "alarms": ", ".join(f"`{name}`" for name in alarm_names(trial)),
    }


DROPS = ("", "_ci95_low", "_ci95_high")
SPEEDS = ("vs_fp32", "ci95_low", "ci95_high")


def _number(value: float, spec: str) -> str:
    return f"{value:{spec}}" if math.isfinite(value) else ""


def accuracy_picture(study: Study, rows: Sequence[ComparedTrial]) -> Figure:
    """A dot a row, best first: its metric with the 95 % interval, against FP32 (dashed)."""
    finished = [row for row in rows if math.isfinite(row.value)]
    quantized = sorted((row for row in finished if not row.trial.reference), key=lambda row: -row.value)
    fp32 = 100 * study.finished[0].number_of(f"{study.primary}_fp32")
    figure = Figure(figsize=(9, 1.5 + 0.36 * len(quantized)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(quantized):
        value, colour = 100 * row.value, COLOURS[1] if row.verdict.startswith("worse") else COLOURS[0]
        low, high = (100 * end for end in _own_interval(study.primary, row))
        axes.hlines(place, low, high, color=colour, linewidth=2)
        axes.plot(value, place, "o", color=colour, markersize=8)
        axes.annotate(
            f"{value:.2f} %",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
        )
    axes.axvline(fp32, color="black", linestyle="--", linewidth=1)
    axes.text(
        fp32,
        -0.85,
        f"not quantized (FP32): {fp32:.2f} %",
        ha="center",
        va="bottom",
        fontsize=10,
        color="black",
    )
    axes.set_yticks(range(len(quantized)), labels=[row.trial.name for row in quantized])
    axes.set(
        ylim=(len(quantized) - 0.5, -0.9), xlabel=f"{study.primary.replace('_', ' ')} (%), 95 % interval"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    sizes = [row.trial.number_of("size_bytes") / row.trial.number_of("size_fp32_bytes") for row in quantized]
    examples = next((len(row.trial.answers.labels) for row in quantized if row.trial.answers), 0)
    title = f"{len(quantized)} ways to quantize one network, each to {min(sizes):.0%} of its size: "
    title += f"accuracy on the same {examples:,} examples"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.text(0.01, 0.012, "blue: not told apart from FP32; orange: worse", fontsize=9, color="0.35")
    return figure


def _own_interval(metric: str, row: ComparedTrial) -> tuple[float, float]:
    """The ends of a trial's own interval, as in results.md."""
    trial = row.trial
    fp32 = trial.number_of(f"{metric}_fp32")
    low, high = (trial.number_of(f"{metric}_drop_ci95_{end}") for end in ("low", "high"))
    return fp32 - high, min(fp32 - low, 1.0)


def photograph(sweep: Path, out: Path, chromium: str) -> None:
    """Takes a picture of the first screen of a sweep's report, at double resolution."""
    with TemporaryDirectory() as scratch, sync_playwright() as playwright:
        page_file = Path(scratch) / "report.html"
        write_page([sweep], None, page_file, max_drop=MAX_DROP)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        view = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=view, device_scale_factor=SCALE, color_scheme="light")
        page.goto(page_file.as_uri())
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
