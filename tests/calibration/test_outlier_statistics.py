"""Outlier statistics by depth, against numpy and scipy over transformers' own hidden states."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import heavy_tailed, properties, sketched
from scipy import stats
from test_planted_outlier import CALIBRATING, OUTLIERS, residual
from tiny import FAMILIES, padded, sites_of, tiny_config, tiny_model

from quantlab.calibration.outlier_statistics import (
    DOMINANT,
    LAYER_METRICS,
    by_depth,
    by_site,
    dominant_channels,
    hidden_states,
    jaccard,
    plot_by_depth,
    site_statistics,
)
from quantlab.calibration.probe import observe
from quantlab.network.architecture import all_sites, skeleton_of
from quantlab.quant.sketch import Sketch

CHANNELS = 20


@pytest.mark.parametrize("family", FAMILIES)
def test_by_depth(family: str) -> None:
    model, batch = tiny_model(family, layers=3), padded()
    names = hidden_states(all_sites(model))
    depths = by_depth(observe(model, sites_of(model), [batch]), names)
    with torch.inference_mode():
        states = model(**batch.inputs, output_hidden_states=True).hidden_states
    assert depths.keys() == set(LAYER_METRICS)
    assert {len(values) for values in depths.values()} == {len(states)} == {4}
    mask = batch.inputs["attention_mask"].bool()
    for depth, state in enumerate(states):
        x = state[mask].double().numpy()  # (tokens, channels)
        if family == "electra" and depth == 0:
            continue  # transformers gives the projected embeddings there, quantlab the embeddings themselves
        squares = x**2
        channels, elements = (np.sort(part)[::-1] for part in (squares.sum(0), squares.ravel()))
        taken = round(0.01 * x.size)
        assert depths["variance"][depth] == pytest.approx(x.var(), rel=1e-5)
        assert depths["kurtosis"][depth] == pytest.approx(stats.kurtosis(x.ravel(), fisher=False), rel=1e-5)
        assert depths["top1pct_energy_channels"][depth] == pytest.approx(
            channels[0] / channels.sum(), rel=1e-5
        )
        expected = elements[:taken].sum() / elements.sum()
        assert depths["top1pct_energy_elements"][depth] == pytest.approx(
            expected, rel=0.05
        )  # 9.92 of 992 elements


def test_statistics() -> None:
    x = heavy_tailed(500, CHANNELS)
    x[:, 7] *= 100
    x[:, 3] = 2.0  # no kurtosis of its own
    found, squares = site_statistics(sketched(*x.split(170))), x.double().numpy() ** 2
    by_channel = stats.kurtosis(np.delete(x.double().numpy(), 3, axis=1), fisher=False)
    elements, channels = np.sort(squares.ravel())[::-1], np.sort(squares.sum(0))[::-1]
    assert found == {
        "kurtosis": pytest.approx(stats.kurtosis(x.double().numpy().ravel(), fisher=False)),
        "channel_kurtosis_median": pytest.approx(np.median(by_channel)),
        "channel_kurtosis_max": pytest.approx(by_channel.max()),
        "variance": pytest.approx(x.double().numpy().var()),
        "min": x.min().item(),
        "max": x.max().item(),
        "top1pct_energy_channels": pytest.approx(channels[0] / channels.sum()),
        "top1pct_energy_elements": pytest.approx(elements[:100].sum() / elements.sum(), rel=0.01),
        "dominant": "7",
    }


def test_statistics_of_equal_elements() -> None:
    found = site_statistics(sketched(torch.full((10, 3), -2.0)))
    unknown = {name for name, value in found.items() if value != value}
    assert unknown == {"kurtosis", "channel_kurtosis_median", "channel_kurtosis_max"}
    assert (found["variance"], found["min"], found["max"], found["dominant"]) == (0, -2, -2, "")


def test_by_site_has_the_sites_that_were_seen() -> None:
    seen, other = sketched(heavy_tailed(50, 4)), sketched(heavy_tailed(50, 3, seed=1))
    table = by_site({"a": seen, "never": Sketch(channels=4), "b": other})
    assert table.to_dict("records") == [
        {"site": "a", **site_statistics(seen)},
        {"site": "b", **site_statistics(other)},
    ]


@properties
@given(st.lists(st.floats(0.125, 1024, width=32), min_size=1, max_size=30), st.integers(0, 5))
def test_dominant_channels(largest: list[float], seed: int) -> None:
    """Those over 6 times the median, strongest first; the sign does not matter, nor does what else a channel
    holds."""
    signs = np.random.default_rng(seed).choice([-1, 1], len(largest))
    x = torch.tensor(np.array([largest * signs, np.array(largest) * -signs / 3]), dtype=torch.float32)
    found = dominant_channels(sketched(x))
    sizes = np.array(largest)
    assert set(found) == set(np.flatnonzero(sizes > DOMINANT * np.median(sizes)))
    assert sizes[found].tolist() == sorted(sizes[found], reverse=True)
    assert len(found) <= len(largest) / 2


def test_the_dominant_channels_of_a_planted_model_are_the_planted_ones() -> None:
    model, plain = residual(), tiny_model()
    planted = observe(model, sites_of(model), [CALIBRATING])
    for layer in range(2):
        assert set(dominant_channels(planted[f"{layer}.ffn.sum"])) == set(OUTLIERS)
        assert set(dominant_channels(planted[f"{layer}.ffn.in"])) == set(OUTLIERS)
    by_name = observe(plain, sites_of(plain), [CALIBRATING])
    assert [dominant_channels(sketch) for sketch in by_name.values()] == [[]] * len(by_name)


@pytest.mark.parametrize(
    "a, b, expected",
    [([1, 2], [2, 1], 1), ([1], [2], 0), ([1, 2, 3], [2, 3, 4], 0.5), ([], [1], 0), ([1, 1], [1], 1)],
)
def test_jaccard(a: Sequence[int], b: Sequence[int], expected: float) -> None:
    assert jaccard(a, b) == jaccard(b, a) == expected


def test_jaccard_of_nothing_is_unknown() -> None:
    assert np.isnan(jaccard([], []))


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_hidden_states(layers: int) -> None:
    names = hidden_states(all_sites(skeleton_of(tiny_config(layers=layers))))
    assert names == ["embed.out"] + [f"{layer}.layer.out" for layer in range(layers)]


@pytest.mark.parametrize(
    "kurtosis",
    [[9.0, 13.9, 41.0, 271.1], [3.0], [1.5, 2.0], [float("nan"), 5e6], [float("nan")]],
    ids=str,
)
def test_plot(kurtosis: list[float], tmp_path: Path) -> None:
    layers = {name: [0.1] * len(kurtosis) for name in LAYER_METRICS} | {"kurtosis": kurtosis}
    plot_by_depth(layers, "title", tmp_path / "plot.png")
    image = matplotlib.image.imread(tmp_path / "plot.png")
    assert image.shape[:2] == (432, 1080)
    assert image[..., :3].std() > 0.01
