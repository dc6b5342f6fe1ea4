"""Pictures of an analysis for MLflow. The report draws its own from the same tables."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from quantlab.results.plots import COLOURS

WORST = 20


def draw_attribution(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[str]:
    """Writes ``attribution.png`` and returns the names of the written files."""
    worst = tables["attribution"].head(WORST).iloc[::-1]
    figure = Figure(figsize=(7, 1 + 0.22 * len(worst)), layout="constrained")
    axes = figure.subplots()
    axes.barh(worst["site"], worst["kl"], color=COLOURS[0])
    axes.set(xlabel="divergence of the answers with only this site quantized (nats)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=8, length=0)
    figure.savefig(folder / "attribution.png", dpi=150)
    return ["attribution.png"]
