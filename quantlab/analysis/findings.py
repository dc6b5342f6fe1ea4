"""The findings of an analysis in sentences, the most important first."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from quantlab.analysis.propagation_findings import propagation_sentences
from quantlab.results.scale import scale_of

Tables = Mapping[str, pd.DataFrame]

NEAR = 0.005  # of the metric: the fewest clipped weights within this of the best are reported
MATTERS = 0.5  # the worst sites that make this share of all divergence are reported
RESIDUAL = (".attn.out", ".ffn.out")  # what is added to the residual stream
OPERANDS = (".ffn.mid", ".attn.context", ".ffn.in", ".attn.in")  # what Linears read
SHOWN_MASSIVE = 3  # sites that the sentence on massive activations names
STANDS_OUT = 5.0  # a position does if its norm is this many times the median token's
REMARKABLE = 2.0  # a kind of token is reported if it has this many times its share of tokens in outliers


def findings(tables: Tables, primary: str) -> list[str]:
    """Sentences about an analysis's tables; skips missing and empty ones. ``primary`` is the metric."""
    parts = (
        (_clipping, "clipping"),
        (_protection, "protection"),
        (_attribution, "attribution"),
        (_weights, "weights"),
        (_massive, "massive"),
        (_positions, "positions"),
        (_layers, "layers"),
        (_tokens, "tokens"),
        (_accumulation, "accumulation"),
        (propagation_sentences, "propagation"),
    )
    known = (part(tables[name], primary) for part, name in parts if name in tables and len(tables[name]))
    return [sentence for sentences in known for sentence in sentences]


def _clipping(table: pd.DataFrame, primary: str) -> Iterator[str]:
    scale, goodness = scale_of(primary), _goodness(table, primary)
    none, best = table.iloc[0], table.iloc[_largest(goodness)]
    if best["clipped"] == 0:
        value = _value(primary, none)
        yield f"Clipping weights gains nothing: {primary} is best, {value}, with none clipped."
        return
    fewest = table[goodness >= goodness.max() - NEAR].iloc[0]
    gained, low, high = (100 * fewest[part] for part in ("difference", "low", "high"))
    yield (
        f"Clipping {fewest['clipped']:.0f} of {fewest['of'] / 1e6:,.1f} million weights takes the quantized "
        f"network's {primary} from {_value(primary, none)} to {_value(primary, fewest)} "
        f"({gained:+.1f} {scale.loss_unit if scale.percent else '% less'}, 95 % interval {low:+.1f} to "
        f"{high:+.1f}; n = {fewest['n']:,.0f}); in FP32 it has "
        f"{_value(primary, fewest, '_fp32')}, clipped {_value(primary, fewest, '_fp32_clipped')}."
    )


def _protection(table: pd.DataFrame, primary: str) -> Iterator[str]:
    top, random = (table[table["kind"] == kind] for kind in ("top", "random"))
    last, none = top.iloc[-1], top.iloc[0]
    if last["sites"] == 0:
        yield f"Nothing needs protection: with every site narrow {primary} is {_value(primary, none)}."
        return
    worst = "the worst site" if last["sites"] == 1 else f"the {last['sites']:.0f} worst sites"
    whole = table[table["kind"] == "reference"].iloc[0]
    text = (
        f"With {worst} in 16 bits {primary} is {_value(primary, last)}, with none "
        f"{_value(primary, none)}, with all {_value(primary, whole)}"
    )
    if len(random):
        best = random.iloc[_largest(_goodness(random, primary))]
        mean = pd.Series({primary: random[primary].mean()})
        text += (
            f"; with as many random ones {_value(primary, mean)} on average, at best "
            f"{_value(primary, best)} ({len(random)} draws)"
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


def _massive(table: pd.DataFrame, primary: str) -> Iterator[str]:
    """One sentence on the sites whose largest value is furthest out; nothing where no value is massive."""
    found = table[table["massive"]]
    if found.empty:
        return
    operands = found[found["site"].str.endswith(OPERANDS)]
    shown = (operands if len(operands) else found).head(SHOWN_MASSIVE)
    values = [
        f"{row['site']} reaches {abs(row['value']):,.0f} ({row['times_median']:,.0f} times its median; "
        f"channel {row['channel']})"
        for _, row in shown.iterrows()
    ]
    places = found["position"].value_counts()
    tokens = [str(token) for token in found["token"].unique() if isinstance(token, str) and token]
    where = f"at position {places.index[0]}" + (" (the first token)" if places.index[0] == 0 else "")
    share = "all" if places.iloc[0] == len(found) else f"{places.iloc[0]} of them"
    named = f", {tokens[0]!r}" if len(tokens) == 1 else ""
    yield (
        f"{len(found)} {'sites have' if len(found) > 1 else 'site has'} massive activations, over 100 and "
        f"1,000 times their median; {share} {where}{named}: {', '.join(values)}."
    )


def _positions(table: pd.DataFrame, primary: str) -> Iterator[str]:
    """One sentence on the position whose norm stands out, and what attention it gets; one on high norms
    elsewhere."""
    alone = table[~table["position"].astype(str).str.contains("to")]
    worst = alone.iloc[_largest(alone["times_median"])]
    own = alone[alone["position"].astype(str) == str(worst["position"])]
    if worst["times_median"] > STANDS_OUT:
        from_depth = own[own["times_median"] > STANDS_OUT]["depth"].min()
        median = worst["norm"] / worst["times_median"]
        name = "The first token" if str(worst["position"]) == "0" else f"The token at {worst['position']}"
        text = (
            f"{name} has a norm of {worst['norm']:,.0f} in the residual stream, against {median:,.0f} of the "
            f"median token, at {worst['site']}, and stands out from depth {from_depth} on"
        )
        paid = own["attention"].mean()
        if np.isfinite(paid):
            text += f"; it gets {paid:.0%} of all attention, in one head {own['attention_head'].max():.0%}"
        yield f"{text}."
    later = table[(table["position"].astype(str) != "0") & (table["depth"] > 0)]
    shares = (later["high_norm"] * later["tokens"]).groupby(later["depth"]).sum()
    if len(shares) and shares.max() > 0:
        depth = int(shares.index[_largest(shares)])
        yield (
            f"At depth {depth}, {shares.max():.1%} of the tokens are others whose norm is over 5 times the "
            "median."
        )


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


def _value(primary: str, row: pd.Series, suffix: str = "") -> str:
    """The metric of a row: ``87.50%``, or ``34.55``."""
    spec = ".2%" if scale_of(primary).percent else ".2f"
    return format(row[f"{primary}{suffix}"], spec)


def _goodness(table: pd.DataFrame, primary: str) -> pd.Series:
    """The metric of each row, the more the better: minus the logarithm of a relative one."""
    scale = scale_of(primary)
    return -np.log(table[primary]) if scale.score.relative else scale.sign * table[primary]


def _largest(column: pd.Series) -> int:
    """The position of the largest number, NaN left out."""
    return int(column.fillna(-np.inf).argmax())
