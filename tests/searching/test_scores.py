"""Scores: the planted site has the highest, the first-order effect is a derivative, and rows are counted."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from searches import PLANTED, ROWS, MakeLab, SearchLab
from tiny import padded, sites_of, tiny_model

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.uniform import Uniform
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan
from quantlab.searching.evaluate import evaluate_candidate
from quantlab.searching.setup import PreparedModel
from quantlab.searching.site_scores import (
    SCORES,
    Scores,
    score_sites,
    single_narrowings,
    with_measured_loss,
)
from quantlab.searching.space import activation_table, space_of
from quantlab.tasks.batching import Batch, total_rows

SAMPLES = 16
MEASURED = "accuracy_drop_points"


@pytest.fixture(scope="module")
def prepared(make_lab: MakeLab) -> Iterator[PreparedModel]:
    """One layer has an outlier channel at its ``ffn.mid``, which causes all of the loss."""
    with make_lab((1,)).prepared() as prepared:
        yield prepared


@pytest.fixture(scope="module")
def scores(prepared: PreparedModel) -> Scores:
    runner = prepared.runner()
    judge, _ = prepared.judge(runner)
    return with_measured_loss(prepared.scores(), prepared.space, runner, prepared.label_columns, judge)


@pytest.mark.parametrize("score", [*SCORES, MEASURED])
def test_the_planted_site_is_the_worst_by_far(scores: Scores, score: str) -> None:
    worst = scores.table.sort_values(score, ascending=False).reset_index()
    assert worst["variable"][0] == PLANTED[1]
    if score == "noise_db":
        assert worst[score][0] > worst[score][1] + 10
    elif score == MEASURED:
        assert worst[score][0] > 20 > 5 > worst[score][1]
    else:
        assert worst[score][0] > 5 * worst[score][1] > 0


def test_there_is_a_row_for_every_variable_and_narrower_choice(
    prepared: PreparedModel, scores: Scores
) -> None:
    assert list(scores.table["variable"]) == [v.name for v in prepared.space.variables]
    assert scores.of("kl").keys() == {(v.name, "int8") for v in prepared.space.variables}
    assert np.isfinite(scores.table[[*SCORES, MEASURED]].to_numpy()).all()


def test_rows_are_those_that_were_answered(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are those that enter the model; a backward pass counts as two."""
    with make_lab((1,)).prepared("search.group_by=layer_role", "search.choices=[int4,int8,fp16]") as prepared:
        answered, backward, marks = [0], [0], {}
        prepared.material.model.register_forward_pre_hook(
            lambda _, __, inputs: answered.__setitem__(0, answered[0] + len(inputs["input_ids"])),
            with_kwargs=True,
        )
        plain = torch.autograd.backward
        monkeypatch.setattr(
            torch.autograd, "backward", lambda *a: (backward.__setitem__(0, backward[0] + 1), plain(*a))
        )
        scores = prepared.scores()
        marks["scores"] = answered[0]
        batches = prepared.material.calibration_batches(replace(prepared.config.calibration, samples=SAMPLES))
        assert sum(scores.rows.values()) == marks["scores"] + 2 * 2 * SAMPLES
        assert backward[0] == 2 * len(batches) and total_rows(batches) == SAMPLES
        variables = len(prepared.space.variables)
        assert scores.rows == {
            "noise_db": 2 * SAMPLES,
            "first_order": 3 * 2 * SAMPLES,
            "kl": (2 * variables + 1) * SAMPLES,
        }
        assert set(scores.seconds) == set(SCORES) and min(scores.seconds.values()) > 0
        runner = prepared.runner()
        judge, _ = prepared.judge(runner)
        answered[0] = 0
        full = with_measured_loss(scores, prepared.space, runner, prepared.label_columns, judge)
        assert full.rows[MEASURED] == answered[0] == (2 * variables + 1) * ROWS


def test_each_combination_narrows_one_variable(prepared: PreparedModel) -> None:
    one_each = single_narrowings(prepared.space)
    assert len(set(one_each)) == len(prepared.space.variables)
    assert all(chosen.count("int8") == 1 for chosen in one_each)


def test_the_measured_loss_is_that_of_the_one_narrow_site(prepared: PreparedModel, scores: Scores) -> None:
    runner, columns = prepared.runner(), prepared.label_columns
    judge, _ = prepared.judge(runner)
    losses = scores.of(MEASURED)
    for name in (PLANTED[1], "0.ffn.in", "head.out"):
        chosen = prepared.space.chosen(
            {s.name: "int8" if s.name == name else "fp16" for s in prepared.space.sites}
        )
        assert losses[name, "int8"] == pytest.approx(
            judge.drop(evaluate_candidate(runner, chosen, columns, None))
        )


def test_a_narrower_choice_scores_worse(make_lab: MakeLab) -> None:
    with make_lab((1,)).prepared("search.group_by=layer_role", "search.choices=[int3,int6,fp16]") as prepared:
        table = prepared.scores().table.pivot(index="variable", columns="choice")
    for score in SCORES:
        assert (table[score]["int3"] > table[score]["int6"]).mean() > 0.9, score


def test_a_variable_has_its_worst_sites_noise(prepared: PreparedModel, make_lab: MakeLab) -> None:
    alone = prepared.scores().of("noise_db")
    with make_lab((1,)).prepared("search.group_by=layer_role") as grouped:
        together = grouped.scores().of("noise_db")
        for v in grouped.space.variables:
            assert together[v.name, "int8"] == pytest.approx(
                max(alone[site.name, "int8"] for site in v.sites)
            )


@pytest.mark.parametrize("labels", [np.array([0, 1, 1, 0, 1, 0]), np.array([1, 1, 0, 0, 0, 1])], ids=str)
def test_the_first_order_effect_is_a_finite_difference(labels: np.ndarray) -> None:
    """Against a finite difference in each row: 1000 x (loss with 1/1000 of the site's error - loss)."""
    model, sites, batch = tiny_model(), sites_of(tiny_model()), padded()
    table = table_of(model, batch, sites)
    scores, step = scored(model, batch, labels, sites), 1e-3
    effects = scores.of("first_order")
    double = tiny_model().double()

    def losses() -> torch.Tensor:
        with torch.inference_mode():
            answers = double(**batch.inputs).logits
        return torch.nn.functional.cross_entropy(answers, torch.from_numpy(labels), reduction="none")

    plain = losses()
    for site in sites:
        snap = quantize(model, table, site.name)

        def shifted(x: torch.Tensor, snap: object = snap) -> torch.Tensor:
            return x + step * (snap(x.float()).double() - x)  # type: ignore[operator]

        with tapped(double, {site.tap: shifted}):
            expected = float(((losses() - plain) / step).abs().mean())
        assert effects[site.name, "int4"] == pytest.approx(expected, rel=0.08, abs=1e-5), site.name
    assert max(effects.values()) > 1e-3


def test_scoring_leaves_the_model_as_it_was() -> None:
    model, batch = tiny_model(), padded()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: dict(vars(module)) for name, module in model.named_modules()}
    scored(model, batch, np.array([0, 1, 1, 0, 1, 0]), sites_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: vars(module) for name, module in model.named_modules()} == hooks
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters())


def test_correlations_are_rank_correlations_with_the_measured_loss() -> None:
    table = pd.DataFrame(
        {
            "variable": list("abcd"),
            "choice": ["int8"] * 4,
            "noise_db": [4.0, 3, 2, 1],
            "first_order": [1e-9, 1, 2, 3],
            "kl": [1.0, 1, 1, 1],
            "perplexity_loss_percent": [0.0, 1, 2, 3],
        }
    )
    costs, measured = dict.fromkeys(SCORES, 5), "perplexity_loss_percent"
    scores = Scores(table=table, rows=costs, seconds=costs, measured=measured)  # type: ignore[arg-type]
    found = scores.correlations().set_index("score")
    assert found["spearman"]["noise_db"] == pytest.approx(-1) and found["spearman"][
        "first_order"
    ] == pytest.approx(1)
    assert np.isnan(found["spearman"]["kl"])  # all alike


def table_of(model: torch.nn.Module, batch: Batch, sites: list) -> dict:  # type: ignore[type-arg]
    from searches import search_of

    search = search_of(choices=("int4", "fp16"))
    space = space_of(search, sites, Uniform(), Bits())
    return activation_table(space, Uniform(), Bits(), observe(model, sites, [batch]), MinMax())


def quantize(model: torch.nn.Module, table: dict, name: str) -> object:  # type: ignore[type-arg]
    from quantlab.engines.insert import quantizer

    return quantizer(table[name, "int4"], model.device)  # type: ignore[arg-type]


def scored(model: torch.nn.Module, batch: Batch, labels: np.ndarray, sites: list) -> Scores:  # type: ignore[type-arg]
    from searches import search_of

    from quantlab.engines.insert import insert_weights
    from quantlab.searching.evaluate import Runner

    search = search_of(choices=("int4", "fp16"))
    space = space_of(search, sites, Uniform(), Bits())
    table = table_of(model, batch, sites)
    with insert_weights(model, QuantPlan(), "simulated") as activations:
        chosen_of = lambda chosen: tuple(table[name, c] for name, c in space.by_site(chosen).items())  # noqa: E731
        runner = Runner(model, lambda chosen: activations(chosen_of(chosen)), space, [batch], 64)
        return score_sites(model, space, table, [batch], labels, runner)


def test_the_divergence_is_that_of_the_answers(planted: SearchLab) -> None:
    """Against logits of the inserted plans."""
    with planted.prepared("engine=simulated", "search.group_by=layer") as prepared:
        scores = prepared.scores()
        space, model, base = prepared.space, prepared.material.model, prepared.base
        batches = prepared.material.calibration_batches(replace(prepared.config.calibration, samples=SAMPLES))
        plans = {chosen: prepared.activations(chosen) for chosen in [space.wide, *single_narrowings(space)]}
    found = []
    for activations in plans.values():
        with insert(model, replace(base, activations=activations)), torch.inference_mode():
            rows = torch.cat([model(**batch.inputs).logits for batch in batches])
            found.append(rows.double().softmax(-1))
    for p, chosen in zip(found[1:], single_narrowings(space), strict=True):
        (narrow,) = [v.name for v, c in zip(space.variables, chosen, strict=True) if c == "int8"]
        expected = (found[0] * (found[0].log() - p.log())).sum(-1).mean()
        assert scores.of("kl")[narrow, "int8"] == pytest.approx(float(expected), rel=1e-6, abs=1e-12)
