"""Percentiles over the extremes of tokens, against NumPy's over all tokens."""

import numpy as np
import pytest
import torch
from properties import heavy_tailed
from tiny import GEMM, padded, sites_of, tiny_model

from quantlab.calibration.estimators import MinMax, TokenPercentile
from quantlab.calibration.probe import observe
from quantlab.quant.grid import AffineGrid
from quantlab.quant.sketch import Sketch

GRID = AffineGrid(bits=8, symmetric=False)
X = heavy_tailed(1000, 12)


def sketch(*parts: torch.Tensor) -> Sketch:
    """The sketch of parts that are merged."""
    merged = Sketch(channels=12, tokens=True)
    for part in parts:
        one = Sketch(channels=12, tokens=True)
        one.update(part)
        merged = merged.merge(one)
    return merged


@pytest.mark.parametrize("percentile", [75, 90, 99, 99.9])
def test_percentiles_are_those_of_the_tokens(percentile: float) -> None:
    found = TokenPercentile(percentile=percentile).range(sketch(X[:300], X[300:]), GRID)
    largest, smallest = X.amax(1).double().numpy(), X.amin(1).double().numpy()
    method = "inverted_cdf"
    assert found[1] == pytest.approx(np.percentile(largest, percentile, method=method), rel=0.004)
    assert found[0] == pytest.approx(np.percentile(smallest, 100 - percentile, method=method), rel=0.004)


def test_all_tokens_are_min_max() -> None:
    assert TokenPercentile(percentile=100).range(sketch(X), GRID) == MinMax().range(sketch(X), GRID)


def test_one_huge_token_is_clipped_and_a_huge_channel_is_not() -> None:
    token, channel = X.clone(), X.clone()
    token[5], channel[:, 5] = 1e4, 1e4
    estimator = TokenPercentile(percentile=99)
    assert estimator.range(sketch(token), GRID)[1] < 100
    assert estimator.range(sketch(channel), GRID)[1] == pytest.approx(1e4, rel=0.004)


def test_sketches_keep_tokens_if_asked() -> None:
    model = tiny_model(layers=1)
    sites, batches = sites_of(model, GEMM), [padded(), padded(seed=1)]
    with_tokens = observe(model, sites, batches, tokens=True)
    without = observe(model, sites, batches)
    for site in sites:
        one, other = with_tokens[site.name], without[site.name]
        assert one.token_histograms.sum(1).tolist() == [one.count, one.count]
        assert torch.equal(one.histogram, other.histogram)
        assert TokenPercentile(percentile=100).range(one, GRID) == MinMax().range(other, GRID)
        with pytest.raises(ValueError, match="the sketch has no extremes of tokens"):
            TokenPercentile().range(other, GRID)
    assert TokenPercentile().observation_key != MinMax().observation_key
