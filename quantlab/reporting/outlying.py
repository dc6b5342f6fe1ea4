"""The section on outliers: by depth, channel and token, and the weights that make them."""

import math

import pandas as pd

from quantlab.reporting.outlier_analysis import Analysis
from quantlab.reporting.sections import Section, Table, as_table
from quantlab.reporting.shapes import Plot, axis, heat, level_line, line
from quantlab.results.reading import Study

TOP = 20  # weights that the table shows
DEPTH = "depth (0: embeddings)"
KURTOSES = {
    "kurtosis": "all elements, padding left out",
    "kurtosis_published": "arXiv 2603.04308: padding counted, mean over batches",
    "channel_kurtosis_median": "median of the channels' own",
    "sum_kurtosis": "residual sum before its LayerNorm",
}
ENERGIES = {
    "top1pct_energy_channels": "top 1 % of channels",
    "top1pct_energy_elements": "top 1 % of elements",
    "top1pct_energy_published": "arXiv 2603.04308: top 1 % of elements, padding counted",
}


TOKENS = {
    "outliers": "Which tokens carry the elements beyond 6 σ",
    "energy": "Which tokens carry the energy",
    "attention": "Which tokens the next layer attends to",
}


def outliers(study: Study, analysis: Analysis | None) -> Section:
    """The section on outliers; without an analysis, by depth only, as every trial measures it."""
    layers = analysis.table("layers") if analysis else None
    by_depth = layers if layers is not None else _by_depth(study)
    plots = [] if by_depth is None else [_kurtosis(by_depth), _energy(by_depth)]
    plots += [_growth(layers)] if layers is not None and "sum_rms" in layers else []
    tables_by_name = analysis.tables if analysis else {}
    makers = {"channels": _channels, "token_channels": _token_channels}
    plots += [make(tables_by_name[name]) for name, make in makers.items() if name in tables_by_name]
    tables = _tokens(tables_by_name["tokens"]) if "tokens" in tables_by_name else []
    tables += [_weights(tables_by_name["weights"])] if "weights" in tables_by_name else []
    findings = [str(sentence) for sentence in analysis.summary["findings"]] if analysis else []
    return Section(
        id="outliers",
        title="Where outliers are",
        paragraphs=findings,
        plots=plots,
        tables=tables,
        commands=[str(analysis.summary["command"])] if analysis else [],
    )


def _by_depth(study: Study) -> pd.DataFrame | None:
    """Kurtosis and energy by depth of the FP32 network, from the first trial that has them."""
    names = [*KURTOSES, *ENERGIES]
    for trial in study.finished:
        lists = {name: trial.metrics[name] for name in names if isinstance(trial.metrics.get(name), list)}
        if "kurtosis" in lists:
            return pd.DataFrame(lists, dtype=float).rename_axis("depth").reset_index()
    return None


def _kurtosis(layers: pd.DataFrame) -> Plot:
    names = {name: label for name, label in KURTOSES.items() if name in layers}
    traces = [
        line(layers["depth"], layers[name], label, index) for index, (name, label) in enumerate(names.items())
    ]
    return Plot(
        id="kurtosis",
        title="Kurtosis by depth",
        traces=traces,
        data=layers,
        caption="Pearson's, of FP32's residual stream on the calibration rows; a Gaussian has 3 (dashed).",
        layout={
            "xaxis": axis(DEPTH, dtick=depth_step(layers)),
            "yaxis": axis("kurtosis", type="log"),
            **level_line(3),
        },
    )


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
        caption="Share of the sum of squares; of channels and of elements are two definitions, "
        "told apart here.",
        layout={
            "xaxis": axis(DEPTH, dtick=depth_step(layers)),
            "yaxis": axis("share (%)", rangemode="tozero"),
        },
    )


def _growth(layers: pd.DataFrame) -> Plot:
    names = {"sum_largest": "largest magnitude", "sum_rms": "root mean square"}
    traces = [
        line(layers["depth"], layers[name], label, index) for index, (name, label) in enumerate(names.items())
    ]
    return Plot(
        id="growth",
        title="Growth along the residual stream",
        traces=traces,
        data=layers,
        caption="Of the residual sums, before each LayerNorm: far apart where single channels stand out.",
        layout={"xaxis": axis(DEPTH, dtick=depth_step(layers)), "yaxis": axis("magnitude", type="log")},
    )


def depth_step(layers: pd.DataFrame) -> int:
    """Depths from one tick of the axis to the next."""
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
        caption="The strongest channels of the residual sums, the strongest on top.",
        layout={"xaxis": axis(DEPTH, dtick=1), "yaxis": axis("channel", type="category", dtick=1)},
    )


def _token_channels(tokens: pd.DataFrame) -> Plot:
    table = tokens.pivot_table(index="channel", columns="position", values="value", aggfunc="first")
    table = table.loc[table.abs().max(axis=1).sort_values().index]
    words = tokens.drop_duplicates("position").sort_values("position")
    table.index = [f"{channel}" for channel in table.index]
    ticks = {
        "tickvals": words["position"].tolist(),
        "ticktext": words["token"].astype(str).tolist(),
        "tickangle": -60,
    }
    site = f" at {tokens['site'].iloc[0]}" if "site" in tokens else ""
    return Plot(
        id="token-channels",
        title="Channels by token",
        data=tokens,
        height=max(420, 17 * len(table) + 150),
        wide=True,
        traces=[heat(table, "x", "channel %{y}, token %{x}<br>x = %{z:.3g}", symmetric=True)],
        caption=f"One example{site}, where the outliers are strongest; the strongest channels, "
        f"zero in the middle.",
        layout={
            "xaxis": axis("", tickmode="array", **ticks),
            "yaxis": axis("channel", type="category", dtick=1),
        },
    )


def _tokens(tokens: pd.DataFrame) -> list[Table]:
    shown = tokens[tokens["tokens"] > 0]
    return [_by_kind(shown, column, title) for column, title in TOKENS.items() if shown[column].notna().any()]


def _by_kind(tokens: pd.DataFrame, column: str, title: str) -> Table:
    """Percent by kind of token (rows) and depth (columns)."""
    wide = 100 * tokens.pivot_table(index="kind", columns="depth", values=column, sort=False)
    share = 100 * tokens.groupby("kind", sort=False)["tokens"].mean()
    texts = pd.concat([share.rename("of tokens"), wide], axis=1).map("{:.1f}".format, na_action="ignore")
    caption = "Percent by depth (0: embeddings); the kind's share of the tokens beside it."
    return as_table(f"tokens-{column}", title, texts.rename_axis("kind of token").reset_index(), caption)


def _weights(weights: pd.DataFrame) -> Table:
    strongest = weights.reindex(weights["sigmas"].abs().sort_values(ascending=False).index).head(TOP)
    names = ("parameter", "row", "column", "value", "sigmas", "site", "channel", "energy")
    shown = strongest[[name for name in names if name in strongest]].copy()
    shown["value"], shown["sigmas"] = (
        shown["value"].map("{:.3f}".format),
        shown["sigmas"].map("{:+.1f}".format),
    )
    if "energy" in shown:
        shown["energy"] = [f"{100 * value:.1f}" if math.isfinite(value) else "" for value in shown["energy"]]
        shown = shown.rename(columns={"energy": "of the channel's energy (%)"})
    title = "Weights behind the outliers"
    caption = (
        f"The {len(shown)} furthest from zero of {len(weights)} listed, in standard deviations of "
        f"their matrix, the "
        "site and channel that each feeds, and the share of its energy that this one weight makes."
    )
    return as_table("weights", title, shown, caption)
