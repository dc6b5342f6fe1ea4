"""Outlier statistics by depth, against numpy and scipy over transformers' own hidden states."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy import stats
from tiny import FAMILIES, padded, sites_of, tiny_config, tiny_model

from quantlab.calibration import observe
from quantlab.outlier_statistics import LAYER_METRICS, by_depth, hidden_states, plot_by_depth
from quantlab.placement.architecture import places, skeleton_of


@pytest.mark.parametrize("family", FAMILIES)
def test_by_depth(family: str) -> None:
    model, batch = tiny_model(family, layers=3), padded()
    names = hidden_states(places(model))
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
        assert depths["top1pct_energy_channels"][depth] == pytest.approx(channels[0] / channels.sum(), rel=1e-5)
        expected = elements[:taken].sum() / elements.sum()
        assert depths["top1pct_energy_elements"][depth] == pytest.approx(expected, rel=0.05)  # 9.92 of 992 elements


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_hidden_states(layers: int) -> None:
    names = hidden_states(places(skeleton_of(tiny_config(layers=layers))))
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
