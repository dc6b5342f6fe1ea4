"""Formal error propagation: known answers of small networks, and finite differences in every family."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import CASES, batch_of, model_of
from searches import PLANTED, MakeLab
from torch import Tensor, nn

from quantlab.analysis.propagation import propagate
from quantlab.analysis.propagation_findings import propagation_sentences
from quantlab.analysis.propagation_table import (
    ALL,
    propagation_tables,
    recursion_table,
    source_table,
)
from quantlab.analysis.tangents import Source
from quantlab.network.architecture import all_sites
from quantlab.network.sites import Site
from quantlab.network.taps import ModuleOutput
from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import TOKENS

CHANNELS, ROWS = 16, 500
STEP = 0.02


class Net(nn.Module):
    """Modules one after the other, in float64; their outputs are tapped by number."""

    device = torch.device("cpu")

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.parts = nn.Sequential(*modules).double().requires_grad_(False)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.parts(x))


def linear(seed: int) -> nn.Linear:
    """An orthogonal matrix, so that errors keep their length."""
    layer = nn.Linear(CHANNELS, CHANNELS)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator))[0]
    return layer


def batches(count: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, CHANNELS)
    return [
        Batch(
            inputs={"x": torch.randn(shape, generator=generator, dtype=torch.float64)},
            indices=np.arange(number * ROWS, (number + 1) * ROWS),
        )
        for number in range(count)
    ]


def rounded(x: Tensor) -> Tensor:
    return (x / STEP).round() * STEP


def sources(snaps: Sequence[Callable[[Tensor], Tensor]]) -> list[Source]:
    """One source at each part's output, by number."""
    return [
        Source(name=f"{number}", snaps={ModuleOutput(f"parts.{number}"): snap})
        for number, snap in enumerate(snaps)
    ]


def test_a_linear_network_is_predicted_exactly() -> None:
    net = Net(linear(1), linear(2), linear(3))
    found = propagate(net, sources([rounded] * 2), {"end": ModuleOutput("parts.2")}, batches())
    for one in found.sources.values():
        assert one.ratio == pytest.approx(1, abs=1e-4) and one.cosine == pytest.approx(1, abs=1e-4)
        assert one.local == pytest.approx(2 * ROWS * CHANNELS * STEP**2 / 12, rel=0.05)
        assert one.at["end"] == pytest.approx(one.predicted) and one.smaller == {}
    assert not source_table(found)["fails"].any()


def test_independent_errors_superpose_to_1() -> None:
    net = Net(linear(1), linear(2), linear(3), linear(4))
    found = propagate(net, sources([rounded] * 4), {}, batches())
    assert found.superposition == pytest.approx(1, abs=0.05)
    assert found.together.ratio == pytest.approx(1, abs=0.05)


def test_an_error_made_twice_superposes_to_2() -> None:
    net = Net(nn.Identity(), nn.Identity(), linear(1))
    found = propagate(net, sources([lambda x: x + STEP] * 2), {}, batches())
    assert found.superposition == pytest.approx(2, abs=1e-4)
    assert found.together.ratio == pytest.approx(1, abs=1e-4)
    assert "as coherent errors do" in list(propagation_sentences(source_table(found), "accuracy"))[-1]


@pytest.mark.parametrize("together", [False, True], ids=["each part alone", "one role"])
def test_what_a_roles_later_layers_make_counts_as_carried(together: bool) -> None:
    """Of one source in every part nothing is born behind the first; its parts' errors add up."""
    net = Net(linear(1), linear(2), linear(3))
    apart = sources([rounded] * 3)
    role = Source(name="role", snaps={tap: snap for one in apart for tap, snap in one.snaps.items()})
    taps = [ModuleOutput(f"parts.{number}") for number in range(3)]
    stream = [Site(name=f"{i}.layer.out", channels=CHANNELS, made_at=tap) for i, tap in enumerate(taps)]
    watched = {site.name: site.tap for site in stream}
    found = propagate(net, [role] if together else apart, watched, batches())
    table = recursion_table(found, stream, stream)
    assert (table["born"][1:] == 0).all() == together
    assert table["error"][2] == pytest.approx(np.sqrt(3) * table["error"][0], rel=0.1)


@pytest.mark.parametrize(
    "error, why", [(30.0, "far too large"), (6.0, "is too large"), (0.1, None)], ids=["30", "6", "0.1"]
)
def test_a_saturating_function_fails_and_it_is_said(error: float, why: str | None) -> None:
    net = Net(nn.Identity(), nn.Tanh())
    found = propagate(net, sources([lambda x: x + error]), {}, batches())
    table = source_table(found)
    sentences = list(propagation_sentences(table, "accuracy"))
    if why is None:
        assert not table["fails"].any() and "for 1 of 1 sources" in sentences[0]
        return
    row = table.iloc[0]
    assert row["fails"] and row["ratio"] < row["ratio_half"] < row["ratio_eighth"] < 1.1
    assert "for 0 of 1 sources" in sentences[0]
    assert sentences[1].startswith("It fails for 0: the measured error is") and why in sentences[1]


def test_a_flat_derivative_predicts_nothing() -> None:
    net = Net(nn.Identity(), nn.Threshold(1e9, 0.0), nn.Identity())
    small = Source(name="0", snaps={ModuleOutput("parts.0"): lambda x: x + 2e9})
    found = propagate(net, [small], {}, batches(1))
    assert source_table(found)["ratio"][0] == np.inf
    assert "the derivative sees nothing" in list(propagation_sentences(source_table(found), "accuracy"))[1]


def test_a_post_norm_takes_the_mean_and_the_radial_part_and_divides_by_the_deviation() -> None:
    """J_N e = (e - mean(e) - x̂ mean(x̂ e)) / sigma."""
    net = Net(nn.Identity(), nn.LayerNorm(CHANNELS, eps=0.0), nn.Identity())
    random = torch.randn(CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = propagate(net, sources([lambda x: x + 1e-4 * random]), {}, batches(1))
    x, e = batches(1)[0].inputs["x"], 1e-4 * random
    sigma = x.std(1, correction=0, keepdim=True)
    hat = (x - x.mean(1, keepdim=True)) / sigma
    expected = (e - e.mean() - hat * (hat * e).mean(1, keepdim=True)) / sigma
    assert found.sources["0"].predicted == pytest.approx(float(expected.square().sum()), rel=1e-9)


@pytest.mark.parametrize("name, head", CASES)
def test_every_tap_of_every_family_propagates_as_finite_differences_do(name: str, head: str) -> None:
    """Errors of a thousandth of each tensor: the measured one is the derivative's."""
    model, inputs = model_of(name, head), batch_of(head)[0]
    predicted = np.array([[5], [3]]) if head == TOKENS else None
    batch = Batch(inputs=inputs, indices=np.arange(2), predicted=predicted)
    every = [
        Source(name=site.name, snaps={site.tap: lambda x: x + 1e-3 * x.std() * torch.cos(50 * x)})
        for site in all_sites(model)
    ]
    found = propagate(model, every, {}, [batch])
    reached = {name: one for name, one in found.sources.items() if one.predicted}
    assert len(reached) > len(every) / 2
    for site, one in found.sources.items():
        if max(one.measured, one.predicted) > 1e-9 * found.answers:
            assert one.ratio == pytest.approx(1, abs=0.03) and one.cosine > 0.999, site


def test_the_planted_site_makes_the_largest_error_and_powers_add_up(make_lab: MakeLab) -> None:
    with make_lab((1,)).prepared("engine=integer") as prepared:
        table, recursion = propagation_tables(prepared)
    assert table["site"].iloc[0] == PLANTED[1] and table["site"].iloc[-1] == ALL
    assert table["site"].is_unique and len(table) == 31
    known = table[:-1][table["predicted"][:-1] > 0]
    assert known["ratio"].median() == pytest.approx(1, abs=0.1) and known["cosine"].median() > 0.9
    assert table["superposition"].notna().sum() == 1
    assert list(recursion["depth"]) == [0, 1, 2]
    squares = recursion[["error", "carried", "born"]] ** 2
    np.testing.assert_allclose(squares["error"], squares["carried"] + squares["born"], rtol=1e-6)
    np.testing.assert_allclose(
        recursion["carried"][1:], (recursion["gain"] * recursion["error"].shift())[1:], rtol=1e-6
    )
    assert recursion["carried"][0] == 0 and (recursion["norm_gain"] > 0).all()
    assert (recursion["measured"] > 0).all()
