"""Remedies: the worst sites protected, random ones beside them, and weights clipped, against direct runs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from searches import PLANTED, ROWS, MakeLab, Opened, SearchLab

from quantlab.analysis.outliers_config import OutliersConfig
from quantlab.analysis.remedies import check_clipping, clipping_table, fibonacci, protected, protection_table
from quantlab.engines.insert import insert
from quantlab.methods.uniform import Uniform
from quantlab.searching.setup import PreparedModel
from quantlab.storage.memo import Memo
from quantlab.trial.trial import run_trial

CULPRIT = "bert.encoder.layer.1.intermediate.dense.weight"


def config(lab: SearchLab, *more: str) -> OutliersConfig:
    settings = (*lab.overrides, "bits.symmetric=false", *more)
    return lab._composed("outliers", *settings)  # type: ignore[return-value]


def ranked(prepared: PreparedModel) -> list[str]:
    """The variables, the planted ones first, the others in the network's order."""
    names = [variable.name for variable in prepared.space.variables]
    return [*PLANTED, *(name for name in names if name not in PLANTED)]


def protecting(lab: SearchLab, draws: int, *more: str) -> pd.DataFrame:
    with Opened(config(lab, *more)) as prepared:
        return protection_table(prepared, ranked(prepared), draws, 0)


@properties
@given(st.integers(0, 2000))
def test_fibonacci(most: int) -> None:
    numbers = [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597]
    assert list(fibonacci(most)) == [*(number for number in numbers if number < most), most]


def test_the_worst_sites_are_enough_and_random_ones_are_not(planted: SearchLab) -> None:
    with Opened(config(planted)) as prepared:
        order = ranked(prepared)
        table = protection_table(prepared, order, 5, 0)
        names = set(order)
    reference, top, random = (table[table["kind"] == kind] for kind in ("reference", "top", "random"))
    assert reference[["sites", "accuracy", "drop_points", "n"]].to_numpy().tolist() == [[30, 1, 0, ROWS]]
    assert [names.split() for names in top["protected"]] == [order[:count] for count in (0, 1, 2)]
    assert list(top["sites"]) == [0, 1, 2] and (top["drop_points"].iloc[:-1] > 2).all()
    assert top["drop_points"].iloc[-1] <= 2
    drawn = [row.split() for row in random["protected"]]
    assert list(random["draw"]) == list(range(5)) and set(random["sites"]) == {2}
    assert all(len(set(row)) == 2 and set(row) <= names for row in drawn)
    assert len({frozenset(row) for row in drawn}) > 1
    assert random["accuracy"].max() < top["accuracy"].iloc[-1]
    assert (table["n"] == ROWS).all() and (
        100 * (1 - table["accuracy"]) - table["drop_points"]
    ).abs().max() < 1e-6
    assert ((table["low"] <= table["drop_points"]) & (table["drop_points"] <= table["high"])).all()


def test_random_sites_are_seeded_and_can_be_left_out(planted: SearchLab) -> None:
    with Opened(config(planted, "search.sites=['*.ffn.*']")) as prepared:
        order = ranked(prepared)
        first, again, other, none = (
            protection_table(prepared, order, draws, seed) for draws, seed in ((2, 0), (2, 0), (2, 1), (0, 0))
        )
    pd.testing.assert_frame_equal(first, again)
    assert list(first["protected"]) != list(other["protected"])
    assert set(none["kind"]) == {"reference", "top"}


def test_a_draw_has_no_site_twice(planted: SearchLab) -> None:
    """Two of two variables: every draw has both."""
    table = protecting(planted, 8, "search.sites=['*.ffn.mid']")
    drawn = [set(names.split()) for names in table["protected"][table["kind"] == "random"]]
    assert drawn == [set(PLANTED)] * 8


def test_the_numbers_are_those_of_the_protected_plan(planted: SearchLab) -> None:
    with Opened(config(planted)) as prepared:
        table = protection_table(prepared, ranked(prepared), 1, 0)
        plans = {
            row.protected: prepared.plan(chosen)
            for row in table.itertuples()
            if row.kind != "reference"
            for chosen in [protected(prepared, row.protected.split())]
        }
        items = {item.site: str(item.grid) for item in plans[" ".join(PLANTED)].activations}
        assert {name for name, grid in items.items() if grid == "fp16"} == set(PLANTED)
    for row in table[table["kind"] != "reference"].itertuples():
        with insert(prepared.material.model, plans[row.protected], "integer"):
            logits = prepared.material.predict("directly").logits
        assert row.accuracy == (logits.argmax(-1) == prepared.material.rows.labels).mean()


def test_nothing_needs_protection_where_the_loss_is_allowed(planted: SearchLab) -> None:
    table = protecting(planted, 3, "search.max_drop=100")
    assert list(table["kind"]) == ["reference", "top"] and list(table["sites"]) == [30, 0]


def test_all_are_tried_where_none_is_enough(planted: SearchLab) -> None:
    """With 2-bit weights not even everything wide is within the limit of FP32."""
    harsh = ("search.reference=fp32", "bits.weights=2", "search.max_drop=0", "search.group_by=layer")
    with Opened(config(planted, *harsh)) as prepared:
        names = [variable.name for variable in prepared.space.variables]
        table = protection_table(prepared, names, 3, 0)
    assert list(table["kind"]) == ["reference"] + ["top"] * 5
    assert list(table["sites"][1:]) == [0, 1, 2, 3, 4] and (table["drop_points"][1:] > 0).all()


def test_clipping_against_direct_runs(make_lab: MakeLab) -> None:
    asked = config(make_lab((1,)), "outliers.clip=[1,3]", "outliers.sigmas=4")
    memo = Memo()
    table = clipping_table(asked, memo)
    assert list(table["clipped"]) == [0, 1, 3] and set(table["n"]) == {ROWS} and set(table["sigmas"]) == {4}
    plain = run_trial(replace(asked, method=Uniform()), memo)
    assert table["accuracy"][0] == plain.metrics["accuracy"]
    peg = config(make_lab((1,)), "outliers.clip=[1]", "outliers.sigmas=4", "method=peg", "method.k=2")
    pd.testing.assert_frame_equal(clipping_table(peg, memo), table[:2])  # per tensor, whatever the method
    assert (table["accuracy_fp32"] == 1).all() and table["accuracy_fp32_clipped"][0] == 1
    np.testing.assert_allclose(table["difference"], table["accuracy"] - table["accuracy"][0])
    assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()

    material = memo.get("material", (asked.model, asked.task, asked.evaluation), lambda: pytest.fail("kept"))
    linears = {n: m for n, m in material.model.named_modules() if isinstance(m, torch.nn.Linear)}
    size = {n: (m.weight.abs() / m.weight.std()).numpy() for n, m in linears.items()}
    for clipped, fp32 in zip(table["clipped"][1:], table["accuracy_fp32_clipped"][1:], strict=True):
        least = np.sort(np.concatenate([x.ravel() for x in size.values()]))[
            -clipped - 1
        ]  # the largest that stays
        before = {n: m.weight.data.clone() for n, m in linears.items()}
        changed = 0
        for name, module in linears.items():
            stays = size[name][size[name] <= least].max()
            limit = float(max(4, stays) * module.weight.std())
            if (size[name] > least).any():
                module.weight.data = module.weight.data.clamp(-limit, limit)
            changed += int((module.weight.data != before[name]).sum())
        answers = material.predict("directly").logits.argmax(-1)
        for name, module in linears.items():
            module.weight.data = before[name]
        assert changed == clipped and fp32 == (answers == material.rows.labels).mean()


@pytest.mark.parametrize("weights", ["32", "fp16"])
def test_weights_without_a_grid_cannot_be_clipped(planted: SearchLab, weights: str) -> None:
    with pytest.raises(
        ValueError, match=r"outliers.clip.* bits.weights must be 2 to 16, got .*outliers.clip=\[\]"
    ):
        check_clipping(config(planted, f"bits.weights={weights}"), Memo())
    check_clipping(config(planted, f"bits.weights={weights}", "outliers.clip=[]"), Memo())
    rules = f"bits.rules=[{{match:'{CULPRIT}',bits:8}}]"
    check_clipping(config(planted, f"bits.weights={weights}", rules), Memo())
