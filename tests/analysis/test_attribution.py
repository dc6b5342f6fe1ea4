"""Attribution: the planted site comes first, and every number equals that of a direct run with the plan."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from searches import PLANTED, MakeLab, SearchLab
from torch import Tensor

from quantlab.analysis.attribution import (
    attribution_table,
    error_power,
    logit_error,
    mean_divergence,
    record_forward,
)
from quantlab.engines.insert import insert
from quantlab.evaluation.diagnosis import site_sqnr_db
from quantlab.plan.plan import QuantPlan
from quantlab.searching.setup import PreparedModel
from quantlab.searching.site_scores import single_narrowings
from quantlab.searching.space import Choices
from quantlab.tasks.batching import Batch

SITES = 30


class Direct:
    """Direct runs: a candidate's whole plan inserted into the FP32 model, transformers' hidden states."""

    def __init__(self, prepared: PreparedModel):
        self.prepared, self.model, self.batches = prepared, prepared.material.model, prepared.scored_rows()[0]
        candidates = [prepared.space.wide, prepared.space.narrow, *single_narrowings(prepared.space)]
        self.plans = {c: prepared.plan(c) for c in candidates}

    def run(self, chosen: Choices) -> tuple[Tensor, list[Tensor]]:
        """Logits, and hidden states by depth without padding."""
        logits, hidden = [], []
        with insert(self.model, self.plans[chosen], self.prepared.config.engine), torch.inference_mode():
            for batch in self.batches:
                output = self.model(**batch.inputs, output_hidden_states=True)
                logits.append(output.logits.double())
                hidden.append([state[kept(batch)].double() for state in output.hidden_states])
        return torch.cat(logits), [torch.cat(states) for states in zip(*hidden, strict=True)]


def kept(batch: Batch) -> Tensor:
    return batch.inputs["attention_mask"].bool()


@pytest.fixture(scope="module", params=["integer", "simulated"])
def found(
    request: pytest.FixtureRequest, make_lab: MakeLab
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, Direct]]:
    """Both tables of a model with one planted site, and direct runs of its candidates."""
    with make_lab((1,)).prepared(f"engine={request.param}") as prepared:
        tables, direct = attribution_table(prepared), Direct(prepared)
    return *tables, direct  # type: ignore[return-value]


Found = tuple[pd.DataFrame, pd.DataFrame, Direct]


def test_the_planted_site_is_worst_by_every_number(found: Found) -> None:
    table = found[0]
    assert len(table) == SITES and table["site"].is_unique
    assert table["site"][0] == PLANTED[1] and table["kl"].is_monotonic_decreasing
    for column in ("kl", "logit_error", "first_order"):
        worst = table.sort_values(column, ascending=False, ignore_index=True)
        assert worst["site"][0] == PLANTED[1] and worst[column][0] > 5 * worst[column][1], column
    assert table["site"][table["sqnr_db"].idxmin()] == PLANTED[1]


def test_layer_and_role_are_the_sites(found: Found) -> None:
    table = found[0]
    assert (table["layer"] + "." + table["role"] == table["site"]).all()
    assert set(table["layer"]) == {"embed", "0", "1", "head"}


def test_changes_of_the_answers_are_those_of_direct_runs(found: Found) -> None:
    table, _, direct = found
    rows, space = table.set_index("site"), direct.prepared.space
    base = direct.run(space.wide)[0]
    for variable, chosen in zip(space.variables, single_narrowings(space), strict=True):
        logits, row = direct.run(chosen)[0], rows.loc[variable.name]
        expected = float((logits - base).square().mean().sqrt())
        assert row["logit_error"] == pytest.approx(expected, rel=1e-3, abs=1e-7), variable.name
        p, q = base.log_softmax(-1), logits.log_softmax(-1)
        divergence = float((p.exp() * (p - q)).sum(-1).mean())
        assert row["kl"] == pytest.approx(divergence, rel=1e-3, abs=1e-10), variable.name


def test_noise_is_the_sites_own(found: Found) -> None:
    """The noise is measured in the network with quantized weights only."""
    table, _, direct = found
    space, prepared = direct.prepared.space, direct.prepared
    narrow = QuantPlan(activations=prepared.activations(space.narrow))
    with insert(direct.model, prepared.base):
        expected = site_sqnr_db(direct.model, narrow, space.sites, direct.batches)
    for row in table.itertuples():
        assert row.sqnr_db == pytest.approx(expected[row.site], rel=1e-4), row.site


def test_errors_accumulate_as_direct_runs_say(found: Found) -> None:
    """measured: all sites narrow; additive: sum over sites narrow alone; signal: all wide."""
    _, table, direct = found
    space = direct.prepared.space
    base = direct.run(space.wide)[1]

    def power(chosen: Choices) -> np.ndarray:
        pairs = zip(base, direct.run(chosen)[1], strict=True)
        return np.array([float((x - y).square().sum()) for x, y in pairs])

    assert list(table["depth"]) == [0, 1, 2] and list(table["site"]) == [
        "embed.out",
        "0.layer.out",
        "1.layer.out",
    ]
    np.testing.assert_allclose(table["signal"], [float(x.square().sum()) for x in base], rtol=1e-4)
    np.testing.assert_allclose(table["measured"], power(space.narrow), rtol=1e-3)
    np.testing.assert_allclose(table["additive"], sum(map(power, single_narrowings(space))), rtol=1e-3)
    assert (table["additive"] > 0).all() and (table["measured"] > 0).all()


def test_a_site_changes_nothing_before_it(found: Found) -> None:
    direct = found[2]
    space, prepared = direct.prepared.space, direct.prepared
    last = [v.name for v in space.variables].index("1.layer.out")
    with prepared.weights:  # again, after the prepared model's end
        base, alone = (
            record_forward(prepared, chosen, direct.batches)
            for chosen in (space.wide, single_narrowings(space)[last])
        )
    power = error_power(base, alone)
    assert power[0] == power[1] == 0 < power[2]
    assert logit_error(base, base) == mean_divergence(base, base) == 0


@pytest.mark.parametrize(
    "group, worst, role",
    [("layer", "1.*", "*"), ("role", "*.ffn.mid", "ffn.mid"), ("layer_role", "1.ffn.*", "ffn.*")],
)
def test_sites_decided_together(make_lab: MakeLab, group: str, worst: str, role: str) -> None:
    with make_lab((1,)).prepared(f"search.group_by={group}") as prepared:
        table, accumulation = attribution_table(prepared)
        names = [variable.name for variable in prepared.space.variables]
    assert set(table["site"]) == set(names)
    first = table.iloc[0]
    assert (first["site"], first["role"]) == (worst, role) and first["layer"] == worst[0]
    assert np.isfinite(accumulation[["additive", "measured"]]).all(axis=None)


def test_two_culprits_come_first_and_the_model_stays_as_it_was(planted: SearchLab) -> None:
    with planted.prepared() as prepared:
        model = prepared.material.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        table = attribution_table(prepared)[0]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert not any(value.requires_grad or value.grad is not None for value in model.parameters())
    assert set(table["site"][:2]) == set(PLANTED)
    assert set(table.nlargest(2, "logit_error")["site"]) == set(PLANTED)


def test_sites_behind_the_stream_leave_it_alone(make_lab: MakeLab) -> None:
    with make_lab((1,)).prepared("search.sites=['head.*']", "bits.activations=fp16") as prepared:
        table, accumulation = attribution_table(prepared)
    assert set(table["layer"]) == {"head"}
    assert (accumulation[["additive", "measured"]] == 0).all(axis=None)
