"""Sketches against numpy and scipy.stats over the data itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import floats, heavy_tailed, matrices, properties, sketched
from scipy import stats
from torch import Tensor

from quantlab.quant.sketch import BUCKETS, MAGNITUDES, Sketch

ROWS, CHANNELS = 3000, 20


def outlier_channel() -> Tensor:
    x = heavy_tailed(ROWS, CHANNELS)
    x[:, 4] *= 200
    return x


DATA = {
    "heavy-tailed": heavy_tailed(ROWS, CHANNELS),
    "gaussian": torch.from_numpy(np.random.default_rng(1).normal(size=(ROWS, CHANNELS)).astype(np.float32)),
    "one outlier channel": outlier_channel(),
    "shifted": heavy_tailed(ROWS, CHANNELS) + 100,
    "negative": -heavy_tailed(ROWS, CHANNELS).abs() - 0.1,
    "rectified": heavy_tailed(ROWS, CHANNELS).clamp(min=0),
    "tiny": heavy_tailed(ROWS, CHANNELS) * 1e-36,
    "huge": heavy_tailed(ROWS, CHANNELS) * 1e34,
    "two values": (heavy_tailed(ROWS, CHANNELS) > 1).float(),
}
PERCENTILES = (0, 0.01, 0.1, 1, 25, 50, 75, 99, 99.9, 99.99, 100)
RESOLUTION = 0.005  # what the sketch promises of a percentile; a bucket's midpoint is within 0.4 %

data = pytest.mark.parametrize("name", DATA)


def wide(x: Tensor) -> NDArray[np.float64]:
    """All elements, in float64."""
    return x.double().numpy().ravel()


@data
def test_moments(name: str) -> None:
    sketch, x = sketched(DATA[name]), wide(DATA[name])
    assert sketch.elements == x.size
    assert sketch.moments()[0] == pytest.approx(x.mean(), rel=1e-9, abs=1e-12 * np.abs(x).max())
    assert sketch.variance() == pytest.approx(x.var(), rel=1e-9)
    assert sketch.kurtosis() == pytest.approx(stats.kurtosis(x / np.abs(x).max(), fisher=False), rel=1e-6)


@data
def test_extremes_and_moments_per_channel(name: str) -> None:
    sketch, x = sketched(DATA[name]), DATA[name].double()
    assert sketch.count == ROWS
    assert torch.equal(sketch.min, DATA[name].amin(0))
    assert torch.equal(sketch.max, DATA[name].amax(0))
    torch.testing.assert_close(sketch.energies(), x.square().sum(0), rtol=1e-9, atol=0)
    assert_moments(sketch, x)


def assert_moments(sketch: Sketch, x: Tensor) -> None:
    """Each channel's mean and sums of powers around it are those of ``x``, in float64."""
    far = x - x.mean(0)
    largest = float(x.abs().max())
    torch.testing.assert_close(sketch.moment_sums[0], x.mean(0), rtol=1e-9, atol=1e-12 * largest)
    for power, sums in zip((2, 3, 4), sketch.moment_sums[1:], strict=True):
        torch.testing.assert_close(
            sums, (far**power).sum(0), rtol=1e-9, atol=1e-12 * float((far.abs() ** power).sum())
        )


@data
@pytest.mark.parametrize("p", PERCENTILES)
def test_percentiles(name: str, p: float) -> None:
    sketch, x = sketched(DATA[name]), wide(DATA[name])
    expected = np.percentile(x, p, method="inverted_cdf")
    assert sketch.percentile(p) == pytest.approx(expected, rel=RESOLUTION)
    if p > 0:
        magnitude = np.percentile(np.abs(x), p, method="inverted_cdf")
        assert sketch.magnitude_percentile(p) == pytest.approx(magnitude, rel=RESOLUTION)


@data
def test_ends_of_the_percentiles_are_exact(name: str) -> None:
    sketch, x = sketched(DATA[name]), DATA[name]
    assert (sketch.percentile(0), sketch.percentile(100)) == (x.min().item(), x.max().item())
    assert sketch.magnitude_percentile(100) == x.abs().max().item()


@data
def test_energies(name: str) -> None:
    sketch, squares = sketched(DATA[name]), DATA[name].double().numpy() ** 2
    channels = np.sort(squares.sum(0))[::-1]
    for share, top in ((0.01, 1), (0.05, 1), (0.06, 2), (0.5, 10), (1.0, CHANNELS)):
        assert sketch.energy_top_channels(share) == pytest.approx(channels[:top].sum() / squares.sum())
    elements = np.sort(squares.ravel())[::-1]
    for share in (0.001, 0.01, 0.5, 1.0):
        expected = elements[: round(share * elements.size)].sum() / squares.sum()
        assert sketch.energy_top_elements(share) == pytest.approx(expected, rel=2 * RESOLUTION)


@data
def test_channel_kurtosis(name: str) -> None:
    sketch, x = sketched(*DATA[name].split(700)), DATA[name].double().numpy()
    expected = stats.kurtosis(x / np.abs(x).max(), axis=0, fisher=False)
    np.testing.assert_allclose(sketch.channel_kurtosis(), expected, rtol=1e-6)


@properties
@given(matrices(), floats(1e4))
def test_kurtosis_of_anything_that_varies(x: Tensor, shift: float) -> None:
    x = x / x.abs().max().clamp(min=1e-30) + shift
    sketch = sketched(x[:1], x[1:]) if len(x) > 1 else sketched(x)
    for found, channel in zip(sketch.channel_kurtosis(), x.double().numpy().T, strict=True):
        assert np.isnan(found) == (np.ptp(channel) == 0)
        if not np.isnan(found):
            assert found == pytest.approx(
                np.mean((channel - channel.mean()) ** 4) / channel.var() ** 2, rel=1e-6
            )


DRAWS = np.random.default_rng(0)
DISTRIBUTIONS = {
    "N(30000, 1)": DRAWS.normal(30000, 1, (ROWS, CHANNELS)),
    "N(-1e6, 1)": DRAWS.normal(-1e6, 1, (ROWS, CHANNELS)),
    "exponential + 1000": 1000 + DRAWS.exponential(1, (ROWS, CHANNELS)),
    "t3 + 500": 500 + DRAWS.standard_t(3, (ROWS, CHANNELS)),
    "uniform in 4096 to 4097": DRAWS.uniform(4096, 4097, (ROWS, CHANNELS)),
    "channels far apart": DRAWS.normal(0, 1, (ROWS, CHANNELS)) + 1e4 * np.arange(CHANNELS),
    "batches far apart": DRAWS.normal(0, 1, (ROWS, CHANNELS)) + 1e4 * (np.arange(ROWS)[:, None] > 1234),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_kurtosis_around_a_large_mean_is_scipys(name: str) -> None:
    x = torch.from_numpy(DISTRIBUTIONS[name].astype(np.float32))
    all_elements, by_channel = (
        stats.kurtosis(x.double().numpy(), axis=axis, fisher=False) for axis in (None, 0)
    )
    first, second, third = x.split([1000, 1, ROWS - 1001])
    for sketch in (
        sketched(x),
        sketched(first, second, third),
        sketched(first, second).merge(sketched(third)),
    ):
        assert sketch.kurtosis() == pytest.approx(all_elements, rel=1e-6)
        np.testing.assert_allclose(sketch.channel_kurtosis(), by_channel, rtol=1e-6)


@data
def test_magnitudes(name: str) -> None:
    sketch = sketched(*DATA[name].split(700))
    assert sketch.magnitudes().tolist() == DATA[name].abs().amax(0).tolist()


@properties
@given(matrices())
def test_any_data(x: Tensor) -> None:
    sketch = sketched(x)
    values, counts = sketch.values()
    assert counts.sum() == x.numel()
    assert (np.diff(values) >= 0).all()
    assert sketch.magnitude_counts().sum() == x.numel()
    assert torch.equal(sketch.min, x.amin(0))
    assert sketch.percentile(0) == x.min()
    ordered = np.sort(wide(x))
    slack = np.maximum(
        RESOLUTION * np.abs(ordered), 2.0**-133
    )  # below, one bucket holds zero and its neighbours
    assert (np.abs(np.repeat(values, counts.astype(int)) - ordered) <= slack).all()


def test_every_bucket_holds_its_midpoint() -> None:
    x = torch.from_numpy(MAGNITUDES.astype(np.float32))
    assert sketched(x[:, None]).magnitude_counts().tolist() == [1] * len(MAGNITUDES)
    assert sketched(-x[:, None]).magnitude_counts().tolist() == [1] * len(MAGNITUDES)


@properties
@given(floats(1e30), st.integers(1, 50), st.integers(1, 5))
def test_equal_elements_have_no_kurtosis(value: float, rows: int, channels: int) -> None:
    sketch = sketched(torch.full((rows, channels), value))
    assert np.isnan(sketch.kurtosis())
    assert sketch.variance() == pytest.approx(0, abs=1e-12 * value**2)
    assert sketch.percentile(99) == value


def test_zeros_have_no_energy() -> None:
    sketch = sketched(torch.zeros(10, 3))
    assert np.isnan(sketch.energy_top_channels())
    assert np.isnan(sketch.energy_top_elements())
    assert (sketch.percentile(0), sketch.percentile(99), sketch.magnitude_percentile(99)) == (0, 0, 0)


@data
def test_merged_is_one_pass(name: str) -> None:
    first, second, third = DATA[name].split([1000, 1, ROWS - 1001])
    merged, once = sketched(first, second).merge(sketched(third)), sketched(first, second, third)
    assert merged.count == once.count
    assert torch.equal(merged.min, once.min)
    assert torch.equal(merged.max, once.max)
    assert torch.equal(merged.histogram, once.histogram)
    assert (
        merged.batch_extremes == once.batch_extremes == [(b.min(), b.max()) for b in (first, second, third)]
    )
    assert_moments(merged, DATA[name].double())


def test_merge_changes_neither() -> None:
    one, two = sketched(DATA["gaussian"]), sketched(DATA["negative"])
    one.merge(two)
    assert torch.equal(one.histogram, sketched(DATA["gaussian"]).histogram)
    assert torch.equal(two.histogram, sketched(DATA["negative"]).histogram)
    assert (one.count, len(two.batch_extremes)) == (ROWS, 1)


def test_merge_of_different_channels() -> None:
    with pytest.raises(ValueError, match="cannot merge sketches of 3 and 4 channels"):
        Sketch(channels=3).merge(Sketch(channels=4))


def test_batches_do_not_matter() -> None:
    x = DATA["heavy-tailed"]
    assert_moments(sketched(*x.split(7)), x.double())
    assert torch.equal(sketched(*x.split(7)).histogram, sketched(x).histogram)


def test_strides_do_not_matter() -> None:
    x = DATA["heavy-tailed"]
    assert torch.equal(sketched(x.T.contiguous().T).histogram, sketched(x).histogram)
    assert torch.equal(sketched(x[::2, ::3]).histogram, sketched(x[::2, ::3].clone()).histogram)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 57, 99])
def test_not_finite(bad: float, row: int) -> None:
    x = heavy_tailed(100, 5)
    x[row, 2] = bad
    sketch = sketched(heavy_tailed(10, 5))
    with pytest.raises(ValueError, match="1 of 500 activations are NaN or infinite"):
        sketch.update(x)
    assert sketch.count == 10


def test_memory_depends_on_channels_alone() -> None:
    def held(rows: int) -> list[int]:
        sketch = sketched(torch.ones(rows, 6))
        tensors = [value for value in vars(sketch).values() if isinstance(value, Tensor)]
        return sorted(tensor.untyped_storage().nbytes() for tensor in tensors)

    assert held(10) == held(5000) == sorted([0, 6 * 4, 6 * 4, 4 * 6 * 8, BUCKETS * 8])
