"""Alarms about ranges: each where its cause is planted, and silence where it is not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from planted import SITE, SYMMETRIC, WEIGHT, activation, message, names, weight
from properties import heavy_tailed, sketched
from tiny import tiny_model
from torch import Tensor

from quantlab.plan.coverage import SAMPLE, site_coverage, weight_coverage, with_coverage
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import WeightQuant
from quantlab.quant.granularity import PerGroup
from quantlab.quant.grid import AffineGrid, FloatGrid


@pytest.mark.parametrize(
    "plan, raises",
    [
        (activation(lo=(0.0,)), True),
        (activation(hi=(0.0,)), True),
        (activation(lo=(-0.001,)), False),
        (activation(lo=(0.0, -1.0), hi=(1.0, 0.0)), False),  # a group for each side
        (activation(lo=(0.0, 0.5)), True),
        (activation(SYMMETRIC, lo=(0.0,)), False),  # a symmetric grid reaches as far below
        (activation(FloatGrid(format="bf16"), lo=(), hi=()), False),
        (weight(0.0, 1.0), True),
        (weight(-1.0, 0.0), True),
        (weight(-1.0, 1.0), False),
        (weight(0.0, 1.0, SYMMETRIC), False),
    ],
)
def test_one_sided_range(plan: QuantPlan, raises: bool) -> None:
    assert ("one_sided_range" in names(plan=plan)) == raises


def test_one_sided_range_where_nothing_lies_beyond() -> None:
    positive = {"0.ffn.sum": sketched(heavy_tailed(500, 4).abs() + 1e-6)}
    rare = heavy_tailed(1000, 1).abs() + 1e-6
    rare[:9] *= -1
    assert not message("one_sided_range", plan=activation(lo=(0.0,)), sketches=positive)
    assert not message(
        "one_sided_range", plan=activation(lo=(0.0,)), sketches={SITE: sketched(rare)}
    )  # less than 1 %
    rare[:20] = -1
    assert message("one_sided_range", plan=activation(lo=(0.0,)), sketches={SITE: sketched(rare)})


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_lie_on_no_side(zero: float) -> None:
    zeros = torch.full((100, 2), zero)
    model = tiny_model()
    model.classifier.weight.fill_(zero)
    for lo, hi in ((0.0, 0.0), (0.0, 1.0), (-1.0, 0.0)):
        unseen = names(plan=activation(lo=(lo,), hi=(hi,)), sketches={SITE: sketched(zeros)})
        assert unseen == ["uncalibrated_site"]
        assert names(plan=weight(lo, hi), model=model) == []


def test_one_sided_range_counts_and_names_some() -> None:
    item = activation(lo=(0.0,)).activations[0]
    items = tuple(replace(item, site=f"{layer}.ffn.sum") for layer in range(5))
    seen = [torch.where(torch.arange(1000)[:, None] < 100 * layer, -1.0, 1.0) for layer in range(1, 6)]
    sketches = {item.site: sketched(x) for item, x in zip(items, seen, strict=True)}
    plan = QuantPlan(activations=items, weights=weight(-1, 1).weights)
    assert message("one_sided_range", plan=plan, sketches=sketches) == (
        "5 of 6 ranges leave out one side of zero: 4.ffn.sum (50.0%), 3.ffn.sum (40.0%), "
        "2.ffn.sum (30.0%), ..."
    )


@pytest.mark.parametrize(
    "format, largest, raises",
    [
        ("fp16", 65504.0, False),
        ("fp16", 65600.0, True),
        ("fp16", -70000.0, True),
        ("bf16", 70000.0, False),
    ],
)
def test_fp16_overflow(format: str, largest: float, raises: bool) -> None:
    x = heavy_tailed(500, 4)
    x[3, 1] = largest
    plan = activation(FloatGrid(format=format), lo=(), hi=())
    text = message("fp16_overflow", plan=plan, sketches={SITE: sketched(x)})
    assert text == (f"0.ffn.sum reaches {abs(largest):.0f}, FP16 ends at 65504" if raises else "")


def test_no_fp16_overflow_of_an_integer_grid() -> None:
    assert not message("fp16_overflow", sketches={SITE: sketched(1e6 * heavy_tailed(500, 4))})


def with_outliers(largest: float, share: float = 0.00005) -> Tensor:
    """Numbers from -1 to 1, and a share of them much larger."""
    x = torch.linspace(-1, 1, 40_000)
    x[: round(share * len(x))] = largest
    return x[:, None]


@pytest.mark.parametrize(
    "largest, used", [(1.0, 256), (3.5, 115), (9.0, 52), (26.0, 20), (40.0, 13), (255.0, 3)]
)
def test_wasted_levels_of_an_activation(largest: float, used: int) -> None:
    """256 levels from -1 to the outliers, of which the numbers up to 1 use ``255 * 2 / (largest + 1) +
    1``."""
    seen, plan = {SITE: sketched(with_outliers(largest))}, activation(lo=(-1.0,), hi=(largest,))
    covered = site_coverage(plan.activations[0], seen[SITE])
    assert covered and covered.used == pytest.approx(used, abs=1) and covered.levels == 256
    text = message("wasted_levels", plan=plan, sketches=seen)
    assert bool(text) == (used < 16)
    if text:
        assert text.startswith("1 of 1 activations have under a sixteenth") and text.endswith(
            f"0.ffn.sum ({covered.used} of 256)"
        )


def test_more_outliers_than_two_in_ten_thousand_are_no_waste() -> None:
    seen = {SITE: sketched(with_outliers(100.0, share=0.001))}
    assert not message("wasted_levels", plan=activation(lo=(-1.0,), hi=(100.0,)), sketches=seen)


def test_sixteen_bits_have_levels_to_spare() -> None:
    seen, grid = {SITE: sketched(with_outliers(9.0))}, AffineGrid(bits=16, symmetric=False)
    assert not message("wasted_levels", plan=activation(grid, lo=(-1.0,), hi=(9.0,)), sketches=seen)
    assert message("wasted_levels", plan=activation(grid, lo=(-1.0,), hi=(9000.0,)), sketches=seen)


def test_levels_of_groups_are_not_known() -> None:
    plan = activation(lo=(-1.0, -1.0), hi=(1.0, 900.0), groups=(0, 0, 1, 1))
    assert not message("wasted_levels", plan=plan)


def classifier(values: Tensor) -> dict[str, object]:
    """A model with this classifier."""
    model = tiny_model()
    model.classifier.weight = torch.nn.Parameter(values, requires_grad=False)
    return {"model": model}


def test_zeroed_weights_of_one_huge_weight() -> None:
    """As in minilm-qnli, where one FFN weight of 7.91 stands among others with a standard deviation of
    0.045."""
    values = 0.045 * torch.from_numpy(np.random.default_rng(0).standard_normal((384, 768), dtype=np.float32))
    values[99, 7] = 7.91
    plan = weight(-0.2, 7.91, SYMMETRIC)
    expected = ((values.abs() < 7.91 / 127 / 2) & (values != 0)).float().mean().item()
    coverage = weight_coverage(plan.weights[0], values)
    assert coverage and coverage.zeroed == pytest.approx(expected, abs=0.01) and 0.5 < expected < 0.6
    assert names(plan=plan, **classifier(values)) == ["zeroed_weights"]
    assert f"classifier.weight ({coverage.zeroed:.1%})" in message(
        "zeroed_weights", plan=plan, **classifier(values)
    )
    values[99, 7] = 0.2
    assert names(plan=weight(-0.2, 0.2, SYMMETRIC), **classifier(values)) == []


def test_one_zeroed_weight_of_many_is_a_finding() -> None:
    """The weights of plans that keep the answers and of plans that collapse are the same ones."""
    huge = weight(-1.0, 400.0, SYMMETRIC).weights[0]
    name = "bert.encoder.layer.{}.{}.dense.weight"
    others = [
        name.format(layer, part)
        for layer in (0, 1)
        for part in ("intermediate", "output", "attention.output")
    ]
    others += [
        f"bert.encoder.layer.{i}.attention.self.{part}.weight" for i in (0, 1) for part in ("query", "key")
    ]
    fine = tuple(replace(huge, parameter=other, lo=(-0.1,), hi=(0.1,)) for other in others)
    assert message("zeroed_weights", plan=QuantPlan(weights=(huge, *fine[:8]))).startswith("1 of 9 weights")
    assert not message("zeroed_weights", plan=QuantPlan(weights=(huge, *fine[:9])))


def test_sites_have_their_levels_beside_them() -> None:
    seen = sketched(with_outliers(9.0))
    covered = site_coverage(activation(lo=(-1.0,), hi=(9.0,)).activations[0], seen)
    assert covered
    table = with_coverage(pd.DataFrame({"name": [SITE, "kept"], "sqnr_db": [9.0, np.inf]}), [covered])
    assert table["levels_used"].tolist()[0] == covered.used and table["levels"].tolist()[0] == 256
    assert table["zeroed"].tolist()[0] == covered.zeroed and table.iloc[1, 2:].isna().all()


def test_zeros_do_not_become_zero() -> None:
    values = torch.zeros(20, 30)
    values[::7] = 1.0
    assert not message("zeroed_weights", plan=weight(-1.0, 1.0, SYMMETRIC), **classifier(values))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_slices_have_their_own_ranges(axis: int, symmetric: bool) -> None:
    """The shares of a weight with a range a slice are those of its slices, each with one range."""
    values = heavy_tailed(6, 6, seed=3) * torch.logspace(-2, 2, 6).unsqueeze(1 - axis)
    lo, hi = values.quantile(0.2, 1 - axis), values.quantile(0.8, 1 - axis)
    grid = AffineGrid(bits=3, symmetric=symmetric)
    item = WeightQuant(parameter=WEIGHT, grid=grid, axis=axis, lo=tuple(lo.tolist()), hi=tuple(hi.tolist()))
    coverage = weight_coverage(item, values)
    slices = [
        weight_coverage(
            replace(item, axis=None, lo=(item.lo[index],), hi=(item.hi[index],)), values.select(axis, index)
        )
        for index in range(6)
    ]
    assert coverage and None not in slices
    assert (
        coverage.outside == pytest.approx(np.mean([one.outside for one in slices if one]))
        and coverage.outside > 0
    )
    assert coverage.zeroed == pytest.approx(np.mean([one.zeroed for one in slices if one]))


def test_a_large_weight_is_sampled_alike_every_time() -> None:
    values = heavy_tailed(3 * SAMPLE, 1)
    item = replace(weight(-1.0, 1.0).weights[0])
    coverage = weight_coverage(item, values)
    assert coverage == weight_coverage(item, values) and coverage
    assert coverage.outside == pytest.approx(float((values.abs() > 1 + 1 / 255).float().mean()), abs=0.01)


@pytest.mark.parametrize("beyond, raises", [(0.0, False), (0.009, False), (0.011, True), (0.3, True)])
def test_saturation(beyond: float, raises: bool) -> None:
    x = torch.linspace(-1, 1, 10_000)
    x[: round(beyond * len(x))] = 3.0
    text = message(
        "saturation", plan=activation(lo=(-1.0,), hi=(1.0,)), sketches={SITE: sketched(x[:, None])}
    )
    assert text == (
        f"1 of 1 tensors have over 1% of their values outside their range: {SITE} ({beyond:.1%})"
        if raises
        else ""
    )
    text = message("saturation", plan=weight(-1.0, 1.0), **classifier(x[:, None]))
    assert bool(text) == raises


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_what_a_range_holds_is_not_outside(bits: int, symmetric: bool) -> None:
    x = heavy_tailed(2000, 3)
    plan = activation(AffineGrid(bits=bits, symmetric=symmetric), lo=(float(x.min()),), hi=(float(x.max()),))
    covered = site_coverage(plan.activations[0], sketched(x))
    assert covered and covered.outside == 0 and covered.cut == 0


def grouped(widths: Tensor, permute: str) -> tuple[QuantPlan, dict[str, object]]:
    x = torch.linspace(-1, 1, 200)[:, None] * widths
    sketch = sketched(x)
    groups = PerGroup(k=2, permute=permute).assign(sketch.min, sketch.max)
    ends = tuple(float(widths[groups == group].max()) for group in range(2))
    plan = activation(lo=tuple(-end for end in ends), hi=ends, groups=tuple(groups.tolist()))
    return plan, {SITE: sketch}


def test_unpermuted_groups() -> None:
    scattered, sorted_already, alike = torch.tensor(
        [[1, 9, 1, 1, 8, 1], [1, 1, 1, 1, 8, 9], [2, 1, 2, 1, 2, 1.0]]
    )
    plan, sketches = grouped(scattered, "none")
    assert message("unpermuted_groups", plan=plan, sketches=sketches).startswith(
        "1 of 1 sites with groups have neighbou"
    )
    for widths, permute in ((scattered, "range"), (sorted_already, "none"), (alike, "none")):
        plan, sketches = grouped(widths, permute)
        assert not message("unpermuted_groups", plan=plan, sketches=sketches)
    assert not message("unpermuted_groups")
