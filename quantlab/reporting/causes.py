"""Why quantization fails here: plots and tables of outliers and errors, from an analysis and from the trials."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from quantlab.reporting.analysis import COMMAND, Analysis
from quantlab.reporting.comparing import Row
from quantlab.reporting.reading import Study
from quantlab.reporting.sections import Section, Table, as_table
from quantlab.reporting.shapes import Plot, axis, bar, bars, heat, level_line, line

TOP = 20  # sites that a bar chart shows; its data has all
DEPTH = "depth (0: embeddings)"
KURTOSES = {
    "kurtosis": "all elements, padding left out",
    "kurtosis_published": "arXiv 2603.04308: padding counted, mean over batches",
    "channel_kurtosis_median": "median of the channels' own",
}
ENERGIES = {
    "top1pct_energy_channels": "top 1 % of channels",
    "top1pct_energy_elements": "top 1 % of elements",
    "top1pct_energy_published": "arXiv 2603.04308: top 1 % of elements, padding counted",
}


def outliers(study: Study, analysis: Analysis | None) -> Section:
    """Where outliers are: by depth, channel and token, and in which weights."""
    layers = analysis.table("layers") if analysis else None
    by_depth = layers if layers is not None else _by_depth(study)
    plots = [] if by_depth is None else [_kurtosis(by_depth), _energy(by_depth)]
    found = analysis.tables if analysis else {}
    makers = {"channels": _channels, "token_channels": _token_channels}
    plots += [make(found[name]) for name, make in makers.items() if name in found]
    lists = {"tokens": _tokens, "weights": _weights}
    tables = [make(found[name]) for name, make in lists.items() if name in found]
    findings = [str(sentence) for sentence in analysis.summary["findings"]] if analysis else []
    return Section(
        id="outliers", title="Where outliers are", paragraphs=findings, plots=plots, tables=tables,
        commands=[str(analysis.summary["command"])] if analysis else [],
    )  # fmt: skip


def errors(study: Study, found: Sequence[Row], analysis: Analysis | None) -> Section:
    """Which sites' errors change the answers, how errors add up, and what takes them away."""
    tables = analysis.tables if analysis else {}
    plots = [_attribution(tables["attribution"])] if "attribution" in tables else _site_noise(found)
    if "accumulation" in tables:
        plots.append(_accumulation(tables["accumulation"]))
    if "protection" in tables:
        plots.append(_protection(tables["protection"], study.primary))
    if "clipping" in tables:
        plots.append(_clipping(tables["clipping"], study.primary))
    missing = [
        "Heat maps of channels and tokens, which sites' errors change the answers, the weights behind outliers, and "
        f"what protecting or clipping them gains: run {COMMAND} with the trials' model, task and evaluation, then the "
        "report again."
    ]
    return Section(
        id="errors", title="What the errors do", plots=plots, paragraphs=[] if analysis else missing,
        commands=[] if analysis else _command(study),
    )  # fmt: skip


def _command(study: Study) -> list[str]:
    """The analysis of the study's model and rows."""
    chosen = ("model", "task", "evaluation", "+sweeps")
    for trial in study.finished:
        words = [word for word in trial.command.split() if word.startswith(chosen[:3])]
        if words:
            return [" ".join([COMMAND, *words])]
    return []


def _by_depth(study: Study) -> pd.DataFrame | None:
    """What every trial measured of the FP32 network, of the first that did."""
    names = [*KURTOSES, *ENERGIES]
    for trial in study.finished:
        lists = {name: trial.metrics[name] for name in names if isinstance(trial.metrics.get(name), list)}
        if "kurtosis" in lists:
            return pd.DataFrame(lists, dtype=float).rename_axis("depth").reset_index()
    return None


def _kurtosis(layers: pd.DataFrame) -> Plot:
    names = {name: label for name, label in KURTOSES.items() if name in layers}
    traces = [line(layers["depth"], layers[name], label, index) for index, (name, label) in enumerate(names.items())]
    return Plot(
        id="kurtosis", title="Kurtosis by depth", traces=traces, data=layers,
        caption="Pearson's, of FP32's residual stream on the calibration rows; a Gaussian has 3 (dashed).",
        layout={"xaxis": axis(DEPTH, dtick=_step(layers)), "yaxis": axis("kurtosis", type="log"), **level_line(3)},
    )  # fmt: skip


def _energy(layers: pd.DataFrame) -> Plot:
    names = {name: label for name, label in ENERGIES.items() if name in layers}
    traces = [
        line(layers["depth"], 100 * layers[name], label, index, "%{y:.1f} %")
        for index, (name, label) in enumerate(names.items())
    ]
    return Plot(
        id="energy",
        title="Energy in the top 1 % by depth",
        traces=traces,
        data=layers,
        caption="Share of the sum of squares; of channels and of elements are two definitions, told apart here.",
        layout={"xaxis": axis(DEPTH, dtick=_step(layers)), "yaxis": axis("share (%)", rangemode="tozero")},
    )


def _step(layers: pd.DataFrame) -> int:
    return max(1, math.ceil(len(layers) / 14))


def _channels(channels: pd.DataFrame) -> Plot:
    table = channels.pivot_table(index="channel", columns="depth", values="largest", aggfunc="first")
    table = table.loc[table.max(axis=1).sort_values().index]
    table.index = [f"{channel}" for channel in table.index]
    return Plot(
        id="channels",
        title="Channels by depth",
        data=channels,
        height=max(380, 17 * len(table) + 90),
        traces=[heat(table, "largest |x|", "channel %{y}, depth %{x}<br>largest |x| %{z:.3g}")],
        caption="The strongest channels of the residual stream, the strongest on top.",
        layout={"xaxis": axis(DEPTH, dtick=1), "yaxis": axis("channel", type="category", dtick=1)},
    )


def _token_channels(tokens: pd.DataFrame) -> Plot:
    table = tokens.pivot_table(index="channel", columns="position", values="value", aggfunc="first")
    table = table.loc[table.abs().max(axis=1).sort_values().index]
    words = tokens.drop_duplicates("position").sort_values("position")
    table.index = [f"{channel}" for channel in table.index]
    ticks = {"tickvals": words["position"].tolist(), "ticktext": words["token"].astype(str).tolist(), "tickangle": -60}
    site = f" at {tokens['site'].iloc[0]}" if "site" in tokens else ""
    return Plot(
        id="token-channels",
        title="Channels by token",
        data=tokens,
        height=max(420, 17 * len(table) + 150),
        wide=True,
        traces=[heat(table, "x", "channel %{y}, token %{x}<br>x = %{z:.3g}", symmetric=True)],
        caption=f"One example{site}, where the outliers are strongest; the strongest channels, zero in the middle.",
        layout={"xaxis": axis("", tickmode="array", **ticks), "yaxis": axis("channel", type="category", dtick=1)},
    )


def _tokens(tokens: pd.DataFrame) -> Table:
    kept = [name for name in ("depth", "kind", "tokens", "outliers", "energy", "attention") if name in tokens]
    shown = tokens.loc[tokens["tokens"] > 0, kept].copy()
    for name in kept[2:]:
        shown[name] = [f"{100 * value:.1f}" if math.isfinite(value) else "" for value in shown[name]]
    names = {
        "kind": "kind of token", "tokens": "share of tokens (%)", "outliers": "of elements beyond 6 σ (%)",
        "energy": "of energy (%)", "attention": "of the next layer's attention (%)",
    }  # fmt: skip
    caption = "Which tokens carry the residual stream's outliers, and how much attention the next layer pays to them."
    return as_table("tokens", "Tokens that carry outliers", shown.rename(columns=names), caption)


def _weights(weights: pd.DataFrame) -> Table:
    strongest = weights.reindex(weights["sigmas"].abs().sort_values(ascending=False).index).head(TOP)
    names = ("parameter", "row", "column", "value", "sigmas", "site", "channel")
    shown = strongest[[name for name in names if name in strongest]].copy()
    shown["value"], shown["sigmas"] = shown["value"].map("{:.3f}".format), shown["sigmas"].map("{:+.1f}".format)
    title = "Weights behind the outliers"
    caption = (
        f"The {len(shown)} furthest from zero of {len(weights)} listed, in standard deviations of their matrix, and "
    )
    return as_table("weights", title, shown, caption + "the site and channel that each feeds.")


def _attribution(sites: pd.DataFrame) -> Plot:
    by = "kl" if "kl" in sites else "logit_error"
    titles = {"kl": "divergence of the answers that it alone causes (nats)", "logit_error": "RMS change of the logits"}
    top = sites.sort_values(by, ascending=False).head(TOP)
    hover = "%{x:.3g}<br>SQNR %{customdata[0]:.1f} dB, logits change by %{customdata[1]:.3g}"
    more = top[["sqnr_db", "logit_error"]].astype(float).replace([np.inf, -np.inf], np.nan)
    return Plot(
        id="attribution", title="Which sites change the answers", data=sites, height=max(420, 21 * len(top) + 90),
        traces=[bar(top["site"], top[by], hover) | {"customdata": more.astype(object).where(more.notna(), None)
                .to_numpy().tolist()}],
        caption=f"Each site quantized alone, everything else in FP32; the first {len(top)} of {len(sites)}.",
        layout={"xaxis": axis(titles[by]), "yaxis": axis("", autorange="reversed", dtick=1)},
    )  # fmt: skip


def _site_noise(found: Sequence[Row]) -> list[Plot]:
    """Without an analysis: the sites with the most noise of the trial that lost most, by its own table."""
    losing = sorted((row for row in found if row.difference < 0), key=lambda row: row.difference)
    for row in losing:
        sites = row.trial.sites
        if sites is not None and "sqnr_db" in sites and np.isfinite(sites["sqnr_db"]).any():
            noisy = sites[np.isfinite(sites["sqnr_db"])].sort_values("sqnr_db")
            top = noisy.head(TOP)
            return [Plot(
                id="noise", title=f"Noise by site in {row.trial.name}", data=sites,
                height=max(420, 21 * len(top) + 90),
                traces=[bar(top["name"], top["sqnr_db"], "SQNR %{x:.1f} dB")],
                caption=f"The trial that lost most; the {len(top)} sites of {len(sites)} with the lowest SQNR, which "
                "says how wrong a tensor is, not what that does to the answers.",
                layout={"xaxis": axis("SQNR (dB)"), "yaxis": axis("", autorange="reversed", dtick=1)},
            )]  # fmt: skip
    return []


def _accumulation(table: pd.DataFrame) -> Plot:
    names = {"measured": "measured, all sites quantized", "additive": "sum of what each makes alone (arXiv 2603.04308)",
             "signal": "the signal itself"}  # fmt: skip
    traces = [line(table["depth"], table[name], label, i) for i, (name, label) in enumerate(names.items())]
    return Plot(
        id="accumulation",
        title="How errors add up",
        traces=traces,
        data=table,
        caption="Error power along the residual stream: above the sum, errors amplify each other; below, they cancel.",
        layout={"xaxis": axis(DEPTH, dtick=_step(table)), "yaxis": axis("power", type="log")},
    )


def _protection(table: pd.DataFrame, metric: str) -> Plot:
    top, random = (table[table["kind"] == kind].sort_values("sites") for kind in ("top", "random"))
    traces = [line(top["sites"], 100 * top[metric], "the worst sites", 0, "%{y:.2f} %")]
    dots = line(random["sites"], 100 * random[metric], f"as many at random, {len(random)} draws", 1, "%{y:.2f} %")
    traces += [dots | {"mode": "markers"}] if len(random) else []
    whole = table.loc[table["kind"] == "reference", metric]
    reference = 100 * float(whole.iloc[0]) if len(whole) else math.nan
    dashed = "; dashed: all sites kept" if len(whole) else ""
    return Plot(
        id="protection",
        title="Keeping the worst sites in 16 bits",
        traces=traces,
        data=table,
        caption=f"{metric.replace('_', ' ').capitalize()} with so many sites kept, the rest quantized{dashed}.",
        layout={"xaxis": axis("sites in 16 bits"), "yaxis": axis(f"{metric} (%)"), **level_line(reference)},
    )


def _clipping(table: pd.DataFrame, metric: str) -> Plot:
    ranks = [str(count) for count in table["clipped"]]
    quantized = line(ranks, 100 * table[metric], "quantized", 0, "%{y:.2f} %")
    fp32 = line(ranks, 100 * table[f"{metric}_fp32_clipped"], "FP32", 1, "%{y:.2f} %")
    unclipped = table.sort_values("clipped")[metric].iloc[0]
    quantized["error_y"] = bars(unclipped + table["low"], unclipped + table["high"], table[metric])
    for end in ("array", "arrayminus"):
        quantized["error_y"][end] = [100 * value for value in quantized["error_y"][end]]
    return Plot(
        id="clipping",
        title="Clipping the largest weights",
        traces=[quantized, fp32],
        data=table,
        caption="With so many of the largest weights clipped; intervals are those of the difference to none clipped.",
        layout={"xaxis": axis("weights clipped", type="category"), "yaxis": axis(f"{metric} (%)")},
    )
