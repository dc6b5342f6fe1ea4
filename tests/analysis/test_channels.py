"""Channels along the residual stream, against numpy and scipy on transformers' own hidden states."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from materials import CALIBRATION, MAX_LENGTH, kept, material_of, seen, states
from scipy import stats
from test_planted_outlier import OUTLIERS, residual
from tiny import FAMILIES, tiny_model
from transformers import PreTrainedModel

from quantlab.analysis import channels
from quantlab.analysis.channels import (
    channel_table,
    layer_table,
    published_statistics,
    stream_sites,
    sum_sites,
)
from quantlab.analysis.tokens import token_table
from quantlab.calibration.estimators import Calibration
from quantlab.trial.material import Material, fp32_sketches

LAYERS = 3


def table_of(material: Material, calibration: Calibration = CALIBRATION, draws: int = 3) -> pd.DataFrame:
    return layer_table(material, calibration, fp32_sketches(material, calibration), draws)


def dominant(table: pd.DataFrame) -> list[set[int]]:
    return [set(map(int, names.split())) for names in table["dominant"]]


def test_a_planted_model_has_exactly_the_planted_channels_everywhere() -> None:
    material = material_of(residual())
    table, (batches, sketches) = table_of(material), seen(material)
    assert list(table["sum_site"]) == ["embed.sum", "0.ffn.sum", "1.ffn.sum"]
    assert dominant(table) == [set(), set(OUTLIERS), set(OUTLIERS)]
    np.testing.assert_array_equal(table["jaccard_previous"], [np.nan, 0, 1])
    np.testing.assert_array_equal(table["jaccard_draws"], [np.nan, 1, 1])
    np.testing.assert_allclose(token_table(material, batches, sketches)[1], [np.nan, 1, 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_has_none(family: str) -> None:
    table = table_of(material_of(tiny_model(family)))
    assert dominant(table) == [set()] * 3
    assert table[["jaccard_previous", "jaccard_draws"]].isna().all(axis=None)


def test_one_draw_says_nothing_of_stability() -> None:
    assert table_of(material_of(residual()), draws=1)["jaccard_draws"].isna().all()


def test_the_draws_are_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that stands out only with one word, which some draws of two rows have."""
    model = tiny_model()
    model.bert.embeddings.word_embeddings.weight[7, 4] = 100
    few = replace(CALIBRATION, samples=2)
    stability = table_of(material_of(model), few, draws=6)["jaccard_draws"]
    assert 0 < stability[0] < 1
    assert (
        table_of(material_of(model), replace(CALIBRATION, samples=30), draws=2)["jaccard_draws"][0] == 1
    )  # all rows


def test_stability_counts_padding_where_the_sketches_do() -> None:
    model = tiny_model()
    model.bert.embeddings.word_embeddings.weight[0, 4] = 100  # [PAD]
    assert dominant(table_of(material_of(model)))[0] == set()
    included = table_of(material_of(model), replace(CALIBRATION, padding="included"))
    assert dominant(included)[0] == {4} and included["jaccard_draws"][0] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_transformers_hidden_states_without_padding(family: str) -> None:
    model = tiny_model(family, LAYERS)
    material = material_of(model)
    table = table_of(material, draws=1)
    assert list(table["depth"]) == list(range(LAYERS + 1))
    assert list(table["site"]) == ["embed.out", *(f"{layer}.layer.out" for layer in range(LAYERS))]
    batches = seen(material)[0]
    assert not all(kept(batch).all() for batch in batches)
    by_batch = [[state[kept(batch)] for state in states(model, batch)] for batch in batches]
    for depth, row in table.iterrows():
        if family == "electra" and depth == 0:
            continue  # transformers gives the projected embeddings there, quantlab the embeddings themselves
        x = np.concatenate([one[depth] for one in by_batch])
        squares = np.sort((x**2).ravel())[::-1]
        by_channel, energy = stats.kurtosis(x, fisher=False), np.sort((x**2).sum(0))[::-1]
        assert row["kurtosis"] == pytest.approx(stats.kurtosis(x.ravel(), fisher=False), rel=1e-5)
        assert row["channel_kurtosis_median"] == pytest.approx(np.median(by_channel), rel=1e-4)
        assert row["channel_kurtosis_max"] == pytest.approx(by_channel.max(), rel=1e-4)
        assert row["variance"] == pytest.approx(x.var(), rel=1e-5)
        assert (row["min"], row["max"]) == pytest.approx((x.min(), x.max()), rel=1e-6)
        assert row["top1pct_energy_channels"] == pytest.approx(energy[0] / energy.sum(), rel=1e-5)
        elements = squares[: round(x.size / 100)].sum() / squares.sum()
        assert row["top1pct_energy_elements"] == pytest.approx(elements, rel=0.02)


def test_the_sums_are_what_enters_the_layer_norms() -> None:
    model, sums = residual(), {}
    material = material_of(model)
    table, (batches, _) = table_of(material, draws=1), seen(material)
    norms = [model.bert.embeddings.LayerNorm, *(layer.output.LayerNorm for layer in model.bert.encoder.layer)]
    for depth, norm in enumerate(norms):
        norm.register_forward_pre_hook(
            lambda _, x, depth=depth: sums.setdefault(depth, []).append(x[0].double())
        )
    with torch.inference_mode():
        for batch in batches:
            model(**batch.inputs)
    for depth, row in table.iterrows():
        x = np.concatenate(
            [part.numpy()[kept(batch)] for part, batch in zip(sums[depth], batches, strict=True)]
        )
        assert row["sum_kurtosis"] == pytest.approx(stats.kurtosis(x.ravel(), fisher=False), rel=1e-5)
        assert row["sum_rms"] == pytest.approx(np.sqrt((x**2).mean()), rel=1e-5)
        assert row["sum_largest"] == pytest.approx(np.abs(x).max(), rel=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_published_definition_counts_padding_and_takes_the_mean_over_batches(family: str) -> None:
    """Against numpy: rows padded to the full length and flattened; 1 % of 6,400 or 3,200 elements."""
    model = tiny_model(family)
    material = material_of(model)
    found = published_statistics(material, CALIBRATION, stream_sites(material)).set_index("site")
    batches = material.calibration_batches(replace(CALIBRATION, padding="included"))
    assert [batch.inputs["input_ids"].shape for batch in batches] == [
        (8, MAX_LENGTH),
        (8, MAX_LENGTH),
        (4, MAX_LENGTH),
    ]
    by_batch = [[x.ravel() for x in states(model, batch)] for batch in batches]
    for depth, site in enumerate(found.index):
        parts = [one[depth] for one in by_batch]
        squares = [np.sort(x**2)[::-1] for x in parts]
        top = [x[: x.size // 100].sum() / x.sum() for x in squares]
        kurtosis = [stats.kurtosis(x, fisher=False) for x in parts]
        assert found["kurtosis_published"][site] == pytest.approx(np.mean(kurtosis), rel=1e-5)
        assert found["top1pct_energy_published"][site] == pytest.approx(np.mean(top), rel=0.01)
        whole = np.concatenate(parts)
        assert stats.kurtosis(whole, fisher=False) != pytest.approx(np.mean(kurtosis), rel=1e-4)
    table = table_of(material, draws=1)
    np.testing.assert_allclose(table["kurtosis_published"], found["kurtosis_published"])
    assert (np.abs(table["kurtosis_published"] / table["kurtosis"] - 1) > 1e-3).any()  # padding matters


def test_the_heat_map_has_every_depth_of_the_strongest_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    material = material_of(residual())
    _, sketches = seen(material)
    whole = channel_table(material, sketches)
    assert len(whole) == 3 * 32
    for row in whole.itertuples():
        sketch = sketches[row.site]
        assert row.largest == max(-sketch.min[row.channel], sketch.max[row.channel])
        assert row.rms == pytest.approx(float(sketch.energies()[row.channel] / sketch.count) ** 0.5)
    monkeypatch.setattr(channels, "DRAWN", len(OUTLIERS))
    strongest = channel_table(material, sketches)
    assert strongest.groupby("depth")["channel"].apply(list).tolist() == [sorted(OUTLIERS)] * 3
    assert strongest.merge(whole).shape == strongest.shape


@pytest.mark.parametrize("family, depths", [("electra", [1, 2]), ("electra without projection", [0, 1, 2])])
def test_a_narrower_embedding_is_not_in_the_heat_map(family: str, depths: list[int]) -> None:
    material = material_of(tiny_model(family))
    assert sorted(channel_table(material, seen(material)[1])["depth"].unique()) == depths
    assert [site.channels for site in sum_sites(material)] == [16 if depths[0] else 32, 32, 32]


def test_looking_leaves_the_model_as_it_was() -> None:
    model: PreTrainedModel = residual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table_of(material_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
