"""The rows that calibrate, and the settings of the range estimators."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, tokenizer
from properties import sketched

from quantlab.calibration import estimators as calibration
from quantlab.calibration.estimators import (
    Calibration,
    MinMax,
    Mse,
    Percentile,
    PublishedPercentile,
    RunningMinMax,
    TokenPercentile,
)
from quantlab.quant import ranges
from quantlab.quant.grid import AffineGrid
from quantlab.tasks.examples import Texts


def examples(count: int = 10) -> Texts:
    """Row ``n`` is the n-th word, so that rows can be told apart."""
    texts = tuple((WORDS[index],) for index in range(count))
    return Texts(texts=texts, labels=np.arange(count))


def first_words(settings: Calibration, max_length: int = 8) -> list[list[int]]:
    """Which examples each batch holds."""
    batches = settings.batches(examples(), tokenizer(), max_length)
    return [(batch.inputs["input_ids"][:, 1] - 5).tolist() for batch in batches]


def test_rows_in_file_order() -> None:
    assert first_words(MinMax(samples=5, batch_size=1)) == [[0], [1], [2], [3], [4]]
    assert first_words(MinMax(samples=5, batch_size=2)) == [[0, 1], [2, 3], [4]]


def test_rows_by_seed() -> None:
    drawn = [first_words(MinMax(samples=5, batch_size=5, seed=seed))[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(rows)) == 5 for rows in drawn)
    assert sorted(first_words(MinMax(samples=10, batch_size=10, seed=3))[0]) == list(range(10))


def test_padding_included_is_the_tasks_full_length() -> None:
    for padding, length in (("masked", 3), ("included", 8)):
        batches = MinMax(samples=2, batch_size=1, padding=padding).batches(
            examples(), tokenizer(), max_length=8
        )
        assert [batch.inputs["input_ids"].shape for batch in batches] == [(1, length), (1, length)]


def test_too_few_rows() -> None:
    with pytest.raises(ValueError, match=r"calibration.samples is 11, but the training split has 10 rows"):
        MinMax(samples=11).batches(examples(), tokenizer(), 8)


def test_everything_that_decides_what_is_seen_is_in_the_key() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"samples": 3},
        {"batch_size": 2},
        {"seed": 0},
        {"padding": "included"},
    ]
    assert len({MinMax(**one).observation_key for one in settings}) == len(settings)
    assert MinMax().observation_key == Percentile(percentile=60, through="quantized").observation_key


GRID = AffineGrid(bits=8, symmetric=True)


@pytest.mark.parametrize(
    "estimator, expected",
    [
        (MinMax(), lambda sketch: ranges.minmax(sketch)),
        (RunningMinMax(momentum=0.3), lambda sketch: ranges.running_minmax(sketch, 0.3)),
        (Percentile(percentile=90), lambda sketch: ranges.percentile(sketch, 90, symmetric=True)),
        (Mse(), lambda sketch: ranges.mse(sketch, GRID)),
        (PublishedPercentile(percentile=90), lambda sketch: ranges.published_percentile(sketch, 90)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_estimators_pass_their_settings_on(estimator: Calibration, expected: Any) -> None:
    random = torch.Generator().manual_seed(0)
    sketch = sketched(*torch.randn(3, 50, 4, generator=random))
    assert estimator.range(sketch, GRID) == expected(sketch)


def test_published_percentile_takes_symmetric_grids_for_unsigned() -> None:
    assert PublishedPercentile().grid(GRID) == AffineGrid(bits=8, symmetric=False)
    assert PublishedPercentile.ranges_weights
    assert MinMax().grid(GRID) == GRID
    assert not MinMax.ranges_weights


@pytest.mark.parametrize(
    "estimator, fields, message",
    [
        (MinMax, {"samples": 0}, "calibration.samples must be a whole number of at least 1, got 0"),
        (MinMax, {"samples": 6.4}, "calibration.samples must be a whole number of at least 1, got 6.4"),
        (MinMax, {"batch_size": -1}, "calibration.batch_size must be a whole number of at least 1, got -1"),
        (MinMax, {"seed": -1}, "calibration.seed must be a whole number of at least 0, got -1"),
        (MinMax, {"seed": "x"}, "calibration.seed must be a whole number of at least 0, got 'x'"),
        (
            MinMax,
            {"padding": "mask"},
            r"calibration.padding must be .*; got 'mask' \(did you mean 'masked'\?\)",
        ),
        (Mse, {"through": "fp23"}, r"calibration.through must be .*; got 'fp23' \(did you mean 'fp32'\?\)"),
        (RunningMinMax, {"momentum": 1}, r"calibration.momentum must be in \[0, 1\), got 1"),
        (RunningMinMax, {"momentum": -0.1}, r"calibration.momentum must be in \[0, 1\), got -0.1"),
        (RunningMinMax, {"momentum": "high"}, r"calibration.momentum must be in \[0, 1\), got 'high'"),
        (RunningMinMax, {"samples": 0}, "calibration.samples"),
        (
            Percentile,
            {"percentile": 0.1},
            r"percentile must be in \(50, 100\], got 0.1 \(did you mean 99.9\?\)",
        ),
        (Percentile, {"percentile": 50}, r"percentile must be in \(50, 100\], got 50$"),
        (Percentile, {"percentile": 100.1}, r"percentile must be in \(50, 100\], got 100.1$"),
        (Percentile, {"percentile": float("nan")}, r"percentile must be in \(50, 100\], got nan$"),
        (Percentile, {"percentile": "99.9"}, r"percentile must be in \(50, 100\], got '99.9'$"),
        (Percentile, {"padding": "no"}, "calibration.padding"),
        (
            PublishedPercentile,
            {"percentile": 0.1},
            r"percentile must be in \(50, 100\], got 0.1 \(did you mean 99.9",
        ),
        (PublishedPercentile, {"batch_size": 0}, "calibration.batch_size"),
    ],
)
def test_bad_settings(estimator: type[Calibration], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(**fields)


def test_every_estimator_is_tested_here() -> None:
    estimators = {
        value
        for value in vars(calibration).values()
        if isinstance(value, type) and issubclass(value, Calibration)
    }
    assert estimators == {
        Calibration,
        MinMax,
        RunningMinMax,
        Percentile,
        TokenPercentile,  # in test_token_percentile.py
        Mse,
        PublishedPercentile,
    }
