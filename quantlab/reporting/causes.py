"""The section on errors: which sites change the answers, how errors add up, what removes them."""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from quantlab.reporting.comparing import ComparedTrial
from quantlab.reporting.outlier_analysis import COMMAND, Analysis
from quantlab.reporting.outlying import DEPTH, depth_step
from quantlab.reporting.sections import Section, Table, as_table
from quantlab.reporting.shapes import Plot, axis, bar, bars, level_line, line
from quantlab.results.reading import Study
from quantlab.results.scale import Scale

FEWEST_LEVELS = 10  # tensors in the table of levels
TOP = 20  # sites that a bar chart shows; its data has all


def errors(study: Study, rows: Sequence[ComparedTrial], analysis: Analysis | None) -> Section:
    """The section on errors. Without an analysis it shows each site's noise and the command for more."""
    tables = analysis.tables if analysis else {}
    plots = [_attribution(tables["attribution"])] if "attribution" in tables else _site_noise(rows)
    if "accumulation" in tables:
        plots.append(_accumulation(tables["accumulation"]))
    if "protection" in tables:
        plots.append(_protection(tables["protection"], study.scale))
    if "clipping" in tables:
        plots.append(_clipping(tables["clipping"], study.scale))
    missing = [
        "Heat maps of channels and tokens, which sites' errors change the answers, the weights behind "
        f"outliers, and what protecting or clipping them gains: run {COMMAND} with the trials' model, task "
        "and evaluation, then the report again."
    ]
    return Section(
        id="errors",
        title="What the errors do",
        plots=plots,
        paragraphs=[] if analysis else missing,
        tables=_levels(rows),
        commands=[] if analysis else _command(study),
    )


def _levels(rows: Sequence[ComparedTrial]) -> list[Table]:
    """The tensors of the trial that lost most whose bulk uses the fewest levels of the grid."""
    for row in sorted((row for row in rows if row.difference < 0), key=lambda row: row.difference):
        sites = row.trial.sites
        if sites is not None and "levels_used" in sites and sites["levels_used"].notna().any():
            known = sites[sites["levels_used"].notna()]
            fewest = known.iloc[np.argsort(known["levels_used"] / known["levels"], kind="stable")].head(
                FEWEST_LEVELS
            )
            table = pd.DataFrame(
                {
                    "tensor": fewest["name"],
                    "kind": fewest["kind"],
                    "levels used": [
                        f"{used:.0f} of {all:.0f}"
                        for used, all in zip(fewest["levels_used"], fewest["levels"], strict=True)
                    ],
                    "becomes 0 (%)": [f"{100 * share:.1f}" for share in fewest["zeroed"]],
                }
            )
            caption = (
                f"Of {row.trial.name}, the trial that lost most: the levels from one end to the "
                f"other of all but "
            )
            caption += (
                "0.02 % of the values, and the share of nonzero values that become 0. sites.csv "
                "has all tensors."
            )
            return [as_table("levels", "Levels that outliers leave", table, caption)]
    return []


# Overrides that an analysis shares. It answers all rows, whatever decided the trials.
ANALYSED = re.compile(r"[+~]*([\w/]+@)?(model|task|evaluation(?!\.(until|max_drop)\b))\b[^=]*=")


def _command(study: Study) -> list[str]:
    """The command that analyses the study's model on its rows; empty where no trial kept its own."""
    for trial in study.finished:
        words = [word for word in shlex.split(trial.command) if ANALYSED.match(word)]
        if words:
            return [shlex.join([*COMMAND.split(), *words])]
    return []


def _attribution(sites: pd.DataFrame) -> Plot:
    by = "kl" if "kl" in sites else "logit_error"
    titles = {
        "kl": "divergence of the answers that it alone causes (nats)",
        "logit_error": "RMS change of the logits",
    }
    top = sites.sort_values(by, ascending=False).head(TOP)
    hover = "%{x:.3g}<br>SQNR %{customdata[0]:.1f} dB, logits change by %{customdata[1]:.3g}"
    more = top[["sqnr_db", "logit_error"]].astype(float).replace([np.inf, -np.inf], np.nan)
    return Plot(
        id="attribution",
        title="Which sites change the answers",
        data=sites,
        height=max(420, 21 * len(top) + 90),
        traces=[
            bar(top["site"], top[by], hover)
            | {"customdata": more.astype(object).where(more.notna(), None).to_numpy().tolist()}
        ],
        caption=f"Each site alone at its narrowest, the others in 16 bits; the first {len(top)} "
        f"of {len(sites)}.",
        layout={"xaxis": axis(titles[by]), "yaxis": axis("", autorange="reversed", dtick=1)},
    )


def _site_noise(rows: Sequence[ComparedTrial]) -> list[Plot]:
    """The noisiest sites of the trial that lost most, from its own table of sites."""
    losing = sorted((row for row in rows if row.difference < 0), key=lambda row: row.difference)
    for row in losing:
        sites = row.trial.sites
        if sites is not None and "sqnr_db" in sites and np.isfinite(sites["sqnr_db"]).any():
            noisy = sites[np.isfinite(sites["sqnr_db"])].sort_values("sqnr_db")
            top = noisy.head(TOP)
            return [
                Plot(
                    id="noise",
                    title=f"Noise by site in {row.trial.name}",
                    data=sites,
                    height=max(420, 21 * len(top) + 90),
                    traces=[bar(top["name"], top["sqnr_db"], "SQNR %{x:.1f} dB")],
                    caption=f"The trial that lost most; the {len(top)} sites of {len(sites)} with the "
                    "lowest SQNR, which says how wrong a tensor is, not what that does to the answers.",
                    layout={"xaxis": axis("SQNR (dB)"), "yaxis": axis("", autorange="reversed", dtick=1)},
                )
            ]
    return []


def _accumulation(table: pd.DataFrame) -> Plot:
    names = {
        "measured": "measured, all sites quantized",
        "additive": "sum of what each makes alone (arXiv 2603.04308)",
        "signal": "the signal itself",
    }
    traces = [line(table["depth"], table[name], label, i) for i, (name, label) in enumerate(names.items())]
    return Plot(
        id="accumulation",
        title="How errors add up",
        traces=traces,
        data=table,
        caption="Error power along the residual stream: above the sum, errors amplify each other; "
        "below, they cancel.",
        layout={"xaxis": axis(DEPTH, dtick=depth_step(table)), "yaxis": axis("power", type="log")},
    )


def _protection(table: pd.DataFrame, scale: Scale) -> Plot:
    metric, factor, hover = scale.score.name, scale.factor, f"%{{y:.2f}}{scale.unit}"
    top, random = (table[table["kind"] == kind].sort_values("sites") for kind in ("top", "random"))
    traces = [line(top["sites"], factor * top[metric], "the worst sites", 0, hover)]
    dots = line(random["sites"], factor * random[metric], f"as many at random, {len(random)} draws", 1, hover)
    traces += [dots | {"mode": "markers"}] if len(random) else []
    whole = table.loc[table["kind"] == "reference", metric]
    reference = factor * float(whole.iloc[0]) if len(whole) else math.nan
    dashed = "; dashed: all sites kept" if len(whole) else ""
    return Plot(
        id="protection",
        title="Keeping the worst sites in 16 bits",
        traces=traces,
        data=table,
        caption=f"{scale.words.capitalize()} with so many sites kept, the rest quantized{dashed}.",
        layout={
            "xaxis": axis("sites in 16 bits"),
            "yaxis": _score_axis(scale),
            **level_line(reference),
        },
    )


def _clipping(table: pd.DataFrame, scale: Scale) -> Plot:
    metric, factor, hover = scale.score.name, scale.factor, f"%{{y:.2f}}{scale.unit}"
    ranks = [str(count) for count in table["clipped"]]
    quantized = line(ranks, factor * table[metric], "quantized", 0, hover)
    fp32 = line(ranks, factor * table[f"{metric}_fp32_clipped"], "FP32", 1, hover)
    unclipped = table.sort_values("clipped")[metric].iloc[0]
    ends = [scale.ends(unclipped, -high, -low) for low, high in table[["low", "high"]].to_numpy(float)]
    low, high = factor * np.array(ends).T
    quantized["error_y"] = bars(low, high, factor * table[metric])
    return Plot(
        id="clipping",
        title="Clipping the largest weights",
        traces=[quantized, fp32],
        data=table,
        caption="With so many of the largest weights clipped; intervals are those of the difference "
        "to none clipped.",
        layout={
            "xaxis": axis("weights clipped", type="category"),
            "yaxis": _score_axis(scale),
        },
    )


def _score_axis(scale: Scale) -> dict[str, Any]:
    return axis(_named(scale), type=scale.spacing)


def _named(scale: Scale) -> str:
    """The score's own name and its unit for an axis."""
    return f"{scale.score.name}{' (%)' if scale.percent else ''}"
