"""Findings from invented tables: what the sentences say, and that NaN stops none of them."""

import re

import numpy as np
import pandas as pd
import pytest

from quantlab.analysis.findings import findings

NAN = float("nan")


def clipping(**more: list[object]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "clipped": [0, 1, 5],
            "of": 2_000_000,
            "sigmas": 6.0,
            "accuracy": [0.5, 0.8, 0.7],
            "accuracy_fp32": 0.86,
            "accuracy_fp32_clipped": [0.86, 0.85, 0.8],
            "difference": [0.0, 0.3, 0.2],
            "low": [0.0, 0.25, 0.1],
            "high": [0.0, 0.35, 0.3],
            "n": 2000,
            **more,
        }
    )


def protection(sites: int = 2, draws: tuple[float, ...] = (0.5, 0.6)) -> pd.DataFrame:
    top = [
        ("top", count, 0.4 + 0.2 * count, " ".join(["a.x", "b.y", "c.z"][:count]))
        for count in range(sites + 1)
    ]
    random = [("random", sites, accuracy, "c.z") for accuracy in draws]
    columns = ["kind", "sites", "accuracy", "protected"]
    return pd.DataFrame([("reference", 3, 0.86, ""), *top, *random], columns=columns)


def attribution(kl: list[float]) -> pd.DataFrame:
    names = [f"{index}.ffn.sum" for index in range(len(kl))]
    shares = {"due_to_beyond_6_sigma": 0.9, "due_to_dominant_channels": 0.8, "in_beyond_6_sigma": 0.001}
    return pd.DataFrame({"site": names, "kl": kl, **shares})


def weights(**more: object) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "parameter": ["m.weight", "n.weight", "q.weight"],
            "row": 99,
            "column": [7, 8, 9],
            "value": [7.91, -3.0, 2.0],
            "sigmas": [174.6, -60.0, 20.0],
            "site": ["0.ffn.out", "1.ffn.out", "1.attn.query"],
            "channel": [99, 99, 3],
            "energy": [1.0, 0.2, 0.1],
            **more,
        }
    )


def layers(**more: object) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "site": ["embed.out", "0.layer.out"],
            "kurtosis": [4.0, 9.0],
            "kurtosis_published": [57.0, 35.0],
            "sum_site": ["embed.sum", "0.ffn.sum"],
            "sum_kurtosis": [3.0, 1234.0],
            "dominant": ["", "99 7"],
            "jaccard_previous": [NAN, 0.0],
            "jaccard_draws": [NAN, 1.0],
            **more,
        }
    )


def tokens(outliers: tuple[float, float] = (0.9, 0.1)) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": ["[SEP]", "word", "padding"] * 2,
            "tokens": [0.05, 0.95, NAN] * 2,
            "outliers": [*outliers, NAN] * 2,
            "attention": [0.4, 0.6, NAN] + [NAN] * 3,
        }
    )


def accumulation(additive: float = 10.0, measured: float = 12.0) -> pd.DataFrame:
    return pd.DataFrame({"depth": [0, 1], "additive": [1.0, additive], "measured": [1.0, measured]})


def said(**tables: pd.DataFrame) -> list[str]:
    return findings(tables, "accuracy")


WHOLE = {
    "clipping": clipping(),
    "protection": protection(),
    "attribution": attribution([3.0, 1.0, 1.0]),
    "weights": weights(),
    "layers": layers(),
    "tokens": tokens(),
    "accumulation": accumulation(),
}


@pytest.mark.parametrize(
    "table, part",
    [
        (
            clipping(),
            "Clipping 1 of 2.0 million weights takes the quantized network's accuracy from 50.00% to 80.00%",
        ),
        (clipping(accuracy=[0.5, 0.796, 0.8]), "Clipping 1 of 2.0 million"),
        (clipping(accuracy=[0.5, 0.794, 0.8]), "Clipping 5 of 2.0 million"),
        (clipping(), "in FP32 it has 86.00%, clipped 85.00%"),
        (
            clipping(accuracy=[0.5, 0.5, 0.4]),
            "Clipping weights gains nothing: accuracy is best, 50.00%, with none",
        ),
        (
            protection(),
            "With the 2 worst sites in 16 bits accuracy is 80.00%, with none 40.00%, with all 86.00%; with",
        ),
        (protection(), "random ones 55.00% on average, at best 60.00% (2 draws): a.x, b.y."),
        (protection(draws=()), "with all 86.00%: a.x, b.y."),
        (protection(sites=1), "With the worst site in 16 bits"),
        (
            protection(sites=0, draws=()),
            "Nothing needs protection: with every site narrow accuracy is 40.00%.",
        ),
        (
            attribution([3.0, 1.0, 1.0]),
            "1 site makes half of what quantizing the 3 one at a time changes of the",
        ),
        (
            attribution([2.0, 2.0, 1.0]),
            "2 sites make half of what quantizing the 3 one at a time changes of the answers",
        ),
        (
            attribution([3.0, 1.0, 1.0]),
            "There, 90.0% of the quantization error is due to elements beyond 6 standard",
        ),
        (attribution([0.0, 0.0]), "Quantizing one of the 2 sites at a time changes no answer."),
        (
            weights(),
            "The largest weight is 7.91, 175 standard deviations, in m.weight, row 99, column "
            "7; it alone makes",
        ),
        (weights(energy=NAN), "in m.weight, row 99, column 7."),
        (
            weights(),
            "2 weights are at least a quarter as far out; 2 of them feed channel 99 of the residual stream.",
        ),
        (weights(site=""), "2 weights are at least a quarter as far out."),
        (weights(sigmas=[100.0, 3.0, 2.0]), "1 weight is at least a quarter as far out"),
        (layers(), "is largest at 0.ffn.sum: 1,234; dominant channels: 99, 7."),
        (layers(dominant=""), "no channel dominates"),
        (
            layers(),
            "At embed.out the hidden state has a kurtosis of 4, and of 57 as arXiv 2603.04308 takes it",
        ),
        (
            layers(),
            "the same in 100% (Jaccard) from one calibration draw to another, and in 0% from "
            "one layer to the",
        ),
        (
            tokens(),
            "[SEP] tokens are 5% of all and carry 90% of the elements beyond 6 standard deviations; the next",
        ),
        (tokens(), "pays them 40% of its attention"),
        (
            accumulation(),
            "make 1.2 times the sum of the errors that each makes alone: errors add up about as",
        ),
        (
            accumulation(measured=50),
            "5 times the sum of the errors that each makes alone: errors add up not as",
        ),
    ],
)
def test_what_is_said(table: pd.DataFrame, part: str) -> None:
    name = next(name for name, whole in WHOLE.items() if set(whole) == set(table))
    sentences = said(**{name: table})
    assert any(part in sentence for sentence in sentences), sentences
    assert all(sentence.endswith(".") and not re.search(r"\bnan\b", sentence) for sentence in sentences), (
        sentences
    )


def test_tokens_that_carry_their_share_are_not_remarkable() -> None:
    assert said(tokens=tokens((0.06, 0.94))) == []
    assert said(tokens=tokens((NAN, NAN))) == []


def test_shares_that_are_unknown_are_not_told() -> None:
    table = attribution([3.0, 1.0])
    assert len(said(attribution=table)) == 2
    assert len(said(attribution=table.assign(due_to_beyond_6_sigma=NAN))) == 1
    assert len(said(attribution=table[["site", "kl"]])) == 1  # sites decided together


def test_the_most_important_comes_first() -> None:
    sentences = said(**dict(reversed(WHOLE.items())))
    begins = [
        "Clipping",
        "With the",
        "1 site",
        "There",
        "The largest weight",
        "2 weights",
        "Kurtosis",
        "At embed.out",
        "The dominant",
        "[SEP]",
        "At the last layer",
    ]
    assert [sentence.startswith(begin) for sentence, begin in zip(sentences, begins, strict=True)] == [
        True
    ] * 11


@pytest.mark.parametrize("missing", WHOLE)
def test_a_missing_or_empty_table_is_passed_over(missing: str) -> None:
    rest = {name: table for name, table in WHOLE.items() if name != missing}
    assert said(**rest) == said(**rest, **{missing: WHOLE[missing].head(0)})
    assert set(said(**rest)) < set(said(**WHOLE))
    assert said() == []


@pytest.mark.parametrize("name", WHOLE)
def test_nan_stops_nothing(name: str) -> None:
    """Each number NaN alone, then all of them."""
    table = WHOLE[name]
    numbers = [
        column for column in table.select_dtypes("number") if column not in ("clipped", "sites", "n", "depth")
    ]
    for unknown in ([column] for column in numbers):
        assert isinstance(said(**{**WHOLE, name: table.assign(**dict.fromkeys(unknown, np.nan))}), list)
    said(**{**WHOLE, name: table.assign(**dict.fromkeys(numbers, np.nan))})
