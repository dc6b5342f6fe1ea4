"""Error shares against closed forms: covered outliers widen the step, clipped ones hold the error."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from searches import SearchLab
from torch import Tensor

from quantlab.analysis.attribution import record_forward
from quantlab.analysis.shares import SHARES, ErrorObserver, SquaredErrors, error_shares
from quantlab.engines.insert import quantizer
from quantlab.network.sites import Site
from quantlab.network.taps import ModuleOutput
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.grid import AffineGrid
from quantlab.quant.sketch import Sketch
from quantlab.searching.setup import PreparedModel

CHANNELS, ROWS, TOKENS, STEP = 8, 40, 25, 10.0
SITE = Site(name="s", channels=CHANNELS, made_at=ModuleOutput("module"))
SYMMETRIC = AffineGrid(bits=8, symmetric=True)
LARGEST = 127 * STEP
FLAT_GAIN = 1 - 1 / (4 * 127**2)  # uniform numbers in +-a: s² / 12 for s = a / 127, by a² / 3


def uniform(seed: int = 0) -> Tensor:
    """Uniform numbers in [-1, 1], (rows, tokens, channels)."""
    values = np.random.default_rng(seed).uniform(-1, 1, (ROWS, TOKENS, CHANNELS)).astype(np.float32)
    return torch.from_numpy(values)


def on_grid(lo: float, hi: float, grid: AffineGrid = SYMMETRIC, **groups: tuple[int, ...]) -> ActivationQuant:
    return ActivationQuant(site="s", tap=SITE.tap, grid=grid, lo=(lo,), hi=(hi,), **groups)


def shares(x: Tensor, item: ActivationQuant, mask: Tensor | None = None) -> dict[str, float]:
    """The shares of one tensor, observed in two batches."""
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    sketch, errors = Sketch(channels=CHANNELS), SquaredErrors()
    sketch.update(SITE.tap.elements(x, mask))
    observer = ErrorObserver.of(SITE, item, sketch, errors)
    for rows in (slice(15), slice(15, None)):
        observer.look(x[rows], mask[rows])
    return errors.shares()


def direct(x: Tensor, item: ActivationQuant) -> float:
    return float((x - quantizer(item, torch.device("cpu"))(x)).double().square().sum())


def test_one_huge_element_widens_the_range_and_holds_no_error() -> None:
    x = uniform()
    x[3, 4, 5] = LARGEST
    found = shares(x, on_grid(-LARGEST, LARGEST))
    rest = float(uniform().double().square().sum() - uniform()[3, 4, 5] ** 2)  # all of it is rounded away
    assert found["error_power"] == pytest.approx(rest) == pytest.approx(direct(x, on_grid(-LARGEST, LARGEST)))
    assert found["in_beyond_6_sigma"] == pytest.approx(0, abs=1e-9)
    assert found["due_to_beyond_6_sigma"] == pytest.approx(FLAT_GAIN, abs=1e-5)
    assert found["in_dominant_channels"] == pytest.approx(
        1 / CHANNELS, rel=0.1
    )  # the channel's other elements
    assert found["due_to_dominant_channels"] == pytest.approx(FLAT_GAIN, abs=1e-5)


def test_one_huge_channel_widens_the_range_and_holds_no_error() -> None:
    x = uniform()
    x[..., 2] = LARGEST * x[..., 2].sign()
    found = shares(x, on_grid(-LARGEST, LARGEST))
    assert found["in_dominant_channels"] == pytest.approx(0, abs=1e-9)
    assert found["due_to_dominant_channels"] == pytest.approx(FLAT_GAIN, abs=1e-5)
    assert found["in_beyond_6_sigma"] == found["due_to_beyond_6_sigma"] == 0  # an eighth of all is no outlier


@pytest.mark.parametrize(
    "grid", [SYMMETRIC, AffineGrid(bits=8, symmetric=False), AffineGrid(bits=4, symmetric=True)]
)
def test_without_outliers_no_error_is_theirs(grid: AffineGrid) -> None:
    found = shares(uniform(), on_grid(uniform().min().item(), uniform().max().item(), grid))
    assert [found[name] for name in SHARES] == [0, 0, 0, 0] and found["error_power"] > 0


def test_clipped_outliers_hold_the_error() -> None:
    """With a percentile's range the error lies in what is clipped."""
    x = uniform()
    x[3, 4, 5] = LARGEST
    found = shares(x, on_grid(-1, 1))
    assert found["in_beyond_6_sigma"] > 0.9999 and found["in_dominant_channels"] > 0.9999
    assert found["error_power"] == pytest.approx((LARGEST - 1) ** 2, rel=1e-3)


def test_a_group_of_their_own_leaves_outliers_only_their_own_error() -> None:
    x, groups = uniform(), tuple(int(channel == 2) for channel in range(CHANNELS))
    x[..., 2] *= LARGEST
    item = ActivationQuant(
        site="s", tap=SITE.tap, grid=SYMMETRIC, lo=(-1, -LARGEST), hi=(1, LARGEST), groups=groups
    )
    found = shares(x, item)
    assert found["in_dominant_channels"] == pytest.approx(found["due_to_dominant_channels"], abs=1e-6)
    assert found["in_dominant_channels"] > 0.99
    assert found["error_power"] == pytest.approx(STEP**2 / 12 * ROWS * TOKENS, rel=0.1)


def test_padding_has_no_error() -> None:
    x, mask = uniform(), torch.ones(ROWS, TOKENS, dtype=torch.bool)
    mask[:, 20:] = False
    x[:, 20:] = 500
    assert shares(x, on_grid(-1, 1), mask) == pytest.approx(shares(x[:, :20], on_grid(-1, 1)))


def test_nothing_lost_has_no_shares() -> None:
    found = shares(torch.zeros(ROWS, TOKENS, CHANNELS), on_grid(0, 0))
    assert found["error_power"] == 0 and all(np.isnan(found[name]) for name in SHARES)


def test_equal_elements_have_no_outliers() -> None:
    found = shares(torch.full((ROWS, TOKENS, CHANNELS), 0.3), on_grid(-1, 1))
    assert [found[name] for name in SHARES] == [0, 0, 0, 0] and found["error_power"] > 0


@pytest.fixture(scope="module", params=["integer", "simulated"])
def prepared(request: pytest.FixtureRequest, make_lab: object) -> Iterator[PreparedModel]:
    lab: SearchLab = make_lab((1,))  # type: ignore[operator]
    with lab.prepared(f"engine={request.param}", "search.choices=[int8,int16]") as prepared:
        yield prepared


def test_every_decided_site_has_shares_of_its_own_error(prepared: PreparedModel) -> None:
    table = error_shares(prepared).set_index("site")
    assert list(table.index) == [site.name for site in prepared.space.sites]
    batches, _ = prepared.scored_rows()
    model = prepared.material.model
    with torch.inference_mode():
        hidden = [model(**batch.inputs, output_hidden_states=True).hidden_states[1] for batch in batches]
    item = prepared.table["0.layer.out", "int8"]
    kept = [x[batch.inputs["attention_mask"].bool()] for x, batch in zip(hidden, batches, strict=True)]
    assert table["error_power"]["0.layer.out"] == pytest.approx(direct(torch.cat(kept), item), rel=1e-4)
    inside, due = table[list(SHARES[::2])], table[list(SHARES[1::2])]
    assert ((inside >= 0) & (inside <= 1)).all(axis=None) and (due <= 1).all(axis=None)


def test_the_planted_sites_error_is_due_to_its_outliers(prepared: PreparedModel) -> None:
    planted = error_shares(prepared).set_index("site").loc["1.ffn.mid"]
    assert planted["due_to_dominant_channels"] > 0.99 > 0.5 > planted["in_dominant_channels"]


def test_measuring_leaves_the_answers_as_they_were(prepared: PreparedModel) -> None:
    batches, _ = prepared.scored_rows()
    before = record_forward(prepared, prepared.space.narrow, batches).logits
    error_shares(prepared)
    for one, other in zip(
        before, record_forward(prepared, prepared.space.narrow, batches).logits, strict=True
    ):
        np.testing.assert_array_equal(one, other)
