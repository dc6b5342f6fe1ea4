"""Massive activations and positions: transformers' own states and attention, and one that is planted."""

import numpy as np
import pandas as pd
import pytest
import torch
from materials import kept, material_of, seen, states
from tiny import tiny_model

from quantlab.analysis.findings import findings
from quantlab.analysis.massive import massive_tables, position_ranges


def test_rows_by_position_are_those_of_transformers() -> None:
    model = tiny_model("bert")
    material = material_of(model)
    batches, sketches = seen(material)
    massive, positions = massive_tables(material, batches, sketches)
    hidden = [states(model, batch) for batch in batches]
    masks = [kept(batch) for batch in batches]
    for depth, site in enumerate(positions["site"].unique()):
        norms = np.concatenate(
            [np.linalg.norm(state[depth], axis=-1)[mask] for state, mask in zip(hidden, masks, strict=True)]
        )
        first = np.concatenate([np.linalg.norm(state[depth][:, 0], axis=-1) for state in hidden])
        row = positions[(positions["site"] == site) & (positions["position"] == "0")].iloc[0]
        assert row["norm"] == pytest.approx(first.mean(), rel=1e-5)
        assert row["times_median"] == pytest.approx(first.mean() / np.median(norms), rel=1e-5)
        largest = max(
            np.abs(state[depth]).max(where=mask[..., None], initial=0)
            for state, mask in zip(hidden, masks, strict=True)
        )
        assert abs(massive.set_index("site").loc[site, "value"]) == pytest.approx(largest, rel=1e-5)
    assert positions.groupby("depth")["tokens"].sum().to_numpy() == pytest.approx(1)
    paid = positions.groupby("depth")["attention"].sum().iloc[:-1]
    assert paid.to_numpy() == pytest.approx(1, abs=1e-5)


def test_attention_of_the_first_token_is_that_of_transformers() -> None:
    model = tiny_model("bert")
    material = material_of(model)
    batches, sketches = seen(material)
    _, positions = massive_tables(material, batches, sketches)
    paid, queries = 0.0, 0
    for batch in batches:
        with torch.inference_mode():
            probs = model(**batch.inputs, output_attentions=True).attentions[0].double().numpy()
        mask = kept(batch)
        paid = paid + (probs[..., 0] * mask[:, None]).sum((0, 2))
        queries += mask.sum()
    row = positions[(positions["depth"] == 0) & (positions["position"] == "0")].iloc[0]
    assert row["attention"] == pytest.approx(np.mean(paid) / queries, rel=1e-4)
    assert row["attention_head"] == pytest.approx(np.max(paid) / queries, rel=1e-4)


def test_ranges_of_positions() -> None:
    assert position_ranges(3) == [(0, 0), (1, 1), (2, 2)]
    ranges = position_ranges(40)
    assert ranges[7:] == [(7, 7), (8, 15), (16, 31), (32, 39)]


def test_a_planted_massive_activation_is_said_in_one_sentence() -> None:
    massive = pd.DataFrame(
        {
            "site": ["11.ffn.mid", "0.layer.out"],
            "value": [-3062.0, 9.0],
            "median": [0.1, 1.0],
            "times_median": [30620.0, 9.0],
            "position": [0, 4],
            "token": ["<|im_start|>", "a"],
            "channel": [7, 1],
            "massive": [True, False],
        }
    )
    positions = pd.DataFrame(
        {
            "depth": [0, 0, 1, 1],
            "site": ["embed.out", "embed.out", "0.layer.out", "0.layer.out"],
            "position": ["0", "1", "0", "1"],
            "tokens": [0.5] * 4,
            "norm": [10.0, 10.0, 25000.0, 140.0],
            "times_median": [1.0, 1.0, 25000 / 140, 1.0],
            "high_norm": [0.0, 0.0, 1.0, 0.0],
            "attention": [0.7, 0.3, np.nan, np.nan],
            "attention_head": [0.95, 0.5, np.nan, np.nan],
        }
    )
    said = findings({"massive": massive, "positions": positions}, "perplexity")
    assert said == [
        "1 site has massive activations, over 100 and 1,000 times their median; all at position 0 (the first "
        "token), '<|im_start|>': 11.ffn.mid reaches 3,062 (30,620 times its median; channel 7).",
        "The first token has a norm of 25,000 in the residual stream, against 140 of the median token, at "
        "0.layer.out, and stands out from depth 1 on; it gets 70% of all attention, in one head 95%.",
    ]
