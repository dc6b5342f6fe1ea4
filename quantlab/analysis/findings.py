"""The findings of an analysis in sentences, the most important first."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

Tables = Mapping[str, pd.DataFrame]

NEAR = 0.005  # of the metric: the fewest clipped weights within this of the best are reported
MATTERS = 0.5  # the worst sites that make this share of all divergence are reported
RESIDUAL = (".attn.out", ".ffn.out")  # what is added to the residual stream
REMARKABLE = 2.0  # a kind of token is reported if it has this many times its share of tokens in outliers


def findings(tables: Tables, primary: str) -> list[str]:
    """Sentences about an analysis's tables; skips missing and empty ones. ``primary`` is the metric."""
    parts = (
        (_clipping, "clipping"),
        (_protection, "protection"),
        (_attribution, "attribution"),
        (_weights, "weights"),
        (_layers, "layers"),
        (_tokens, "tokens"),
        (_accumulation, "accumulation"),
    )
    known = (part(tables[name], primary) for part, name in parts if name in tables and len(tables[name]))
    return [sentence for sentences in known for sentence in sentences]


def _clipping(table: pd.DataFrame, primary: str) -> Iterator[str]:
    none, best = table.iloc[0], table.iloc[_largest(table[primary])]
    if best["clipped"] == 0:
        yield f"Clipping weights gains nothing: {primary} is best, {none[primary]:.2%}, with none clipped."
        return
    fewest = table[table[primary] >= best[primary] - NEAR].iloc[0]
    yield (
        f"Clipping {fewest['clipped']:.0f} of {fewest['of'] / 1e6:,.1f} million weights takes the quantized "
        f"network's {primary} from {none[primary]:.2%} to {fewest[primary]:.2%} "
        f"({100 * fewest['difference']:+.1f} points, 95 % interval {100 * fewest['low']:+.1f} to "
        f"{100 * fewest['high']:+.1f}; n = {fewest['n']:,.0f}); in FP32 it has "
        f"{fewest[f'{primary}_fp32']:.2%}, clipped {fewest[f'{primary}_fp32_clipped']:.2%}."
    )


def _protection(table: pd.DataFrame, primary: str) -> Iterator[str]:
    top, random = (table[table["kind"] == kind] for kind in ("top", "random"))
    last, none = top.iloc[-1], top.iloc[0]
    if last["sites"] == 0:
        yield f"Nothing needs protection: with every site narrow {primary} is {none[primary]:.2%}."
        return
    worst = "the worst site" if last["sites"] == 1 else f"the {last['sites']:.0f} worst sites"
    text = (
        f"With {worst} in 16 bits {primary} is {last[primary]:.2%}, with none "
        f"{none[primary]:.2%}, with all {table[table['kind'] == 'reference'].iloc[0][primary]:.2%}"
    )
    if len(random):
        text += (
            f"; with as many random ones {random[primary].mean():.2%} on average, at best "
            f"{random[primary].max():.2%} ({len(random)} draws)"
        )
    yield f"{text}: {last['protected'].replace(' ', ', ')}."


def _attribution(table: pd.DataFrame, primary: str) -> Iterator[str]:
    if not table["kl"].sum() > 0:
        yield f"Quantizing one of the {len(table)} sites at a time changes no answer."
        return
    reached = table["kl"].sort_values(ascending=False).cumsum() / table["kl"].sum()
    most = int((reached < MATTERS).sum()) + 1
    names = ", ".join(table["site"][:most])
    makes = "sites make" if most > 1 else "site makes"
    yield (
        f"{most} {makes} half of what quantizing the {len(table)} one at a time changes of the "
        f"answers: {names}."
    )
    if "due_to_beyond_6_sigma" in table:
        worst = table.iloc[:most]
        shares = ("due_to_beyond_6_sigma", "due_to_dominant_channels", "in_beyond_6_sigma")
        due, channels, inside = (worst[share].mean() for share in shares)
        if np.isfinite(due):
            yield (
                f"There, {due:.1%} of the quantization error is due to elements beyond 6 standard "
                f"deviations, which "
                f"widen the range ({channels:.1%} to the dominant channels); {inside:.2%} of it lies in them."
            )


def _weights(table: pd.DataFrame, primary: str) -> Iterator[str]:
    worst = table.iloc[0]
    made = (
        ""
        if np.isnan(worst["energy"])
        else f"; it alone makes {worst['energy']:.0%} of that channel's energy"
    )
    yield (
        f"The largest weight is {worst['value']:.2f}, {abs(worst['sigmas']):.0f} standard deviations, in "
        f"{worst['parameter']}, row {worst['row']}, column {worst['column']}{made}."
    )
    strong = table[table["sigmas"].abs() >= abs(worst["sigmas"]) / 4]
    text = f"{len(strong)} weight{'s are' if len(strong) > 1 else ' is'} at least a quarter as far out"
    residual = strong[strong["site"].astype(str).str.endswith(RESIDUAL)]["channel"].value_counts()
    if len(residual):
        text += f"; {residual.iloc[0]} of them feed channel {residual.index[0]} of the residual stream"
    yield f"{text}."


def _layers(table: pd.DataFrame, primary: str) -> Iterator[str]:
    worst, published = (table.iloc[_largest(table[name])] for name in ("sum_kurtosis", "kurtosis_published"))
    dominant = str(worst["dominant"]).split()
    channels = f"; dominant channels: {', '.join(dominant[:5])}" if dominant else "; no channel dominates"
    yield (
        f"Kurtosis of the residual sums (a Gaussian has 3) is largest at {worst['sum_site']}: "
        f"{worst['sum_kurtosis']:,.0f}{channels}."
    )
    yield (
        f"At {published['site']} the hidden state has a kurtosis of {published['kurtosis']:.0f}, and of "
        f"{published['kurtosis_published']:.0f} as arXiv 2603.04308 takes it, which counts padding."
    )
    if table["jaccard_draws"].notna().any():
        yield (
            f"The dominant channels are the same in {table['jaccard_draws'].mean():.0%} (Jaccard) from "
            f"one calibration "
            f"draw to another, and in {table['jaccard_previous'].mean():.0%} from one layer to the next."
        )


def _tokens(table: pd.DataFrame, primary: str) -> Iterator[str]:
    shares = (
        table[["kind", "tokens", "outliers", "attention"]].groupby("kind").mean().dropna(subset="outliers")
    )
    shares = shares[shares["outliers"] > REMARKABLE * shares["tokens"]].sort_values(
        "outliers", ascending=False
    )
    for kind, row in shares.iterrows():
        paid = (
            ""
            if np.isnan(row["attention"])
            else f"; the next layer pays them {row['attention']:.0%} of its attention"
        )
        yield (
            f"{kind} tokens are {row['tokens']:.0%} of all and carry {row['outliers']:.0%} of the elements "
            f"beyond 6 standard deviations{paid} (means over depths)."
        )


def _accumulation(table: pd.DataFrame, primary: str) -> Iterator[str]:
    last = table.iloc[-1]
    if last["additive"] > 0 and np.isfinite(last["measured"]):
        ratio = last["measured"] / last["additive"]
        verdict = "about as" if 0.5 < ratio < 2 else "not as"
        yield (
            f"At the last layer all sites together make {ratio:.2g} times the sum of the errors that each "
            f"makes alone: errors add up {verdict} independent ones would."
        )


def _largest(column: pd.Series) -> int:
    """The position of the largest number, NaN left out."""
    return int(column.fillna(-np.inf).argmax())
