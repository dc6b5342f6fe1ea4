"""Alternatives of transform, split and rounding: read, refused, planned as in a trial, and decided."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from searches import SearchLab, candidates, search_of

from quantlab.engines.insert import ENGINES, insert
from quantlab.rounding.gptq import Gptq
from quantlab.searching import worker as worker_module
from quantlab.searching.alternatives import OWN, name_of
from quantlab.searching.evaluate import evaluate_candidate
from quantlab.searching.search_run import measure_sensitivity, run_search
from quantlab.searching.setup import PreparedModel, checked_space
from quantlab.searching.space import Choices
from quantlab.storage.memo import Memo
from quantlab.transforms.hadamard import Hadamard
from quantlab.transforms.smoothquant import SmoothQuant
from quantlab.transforms.transform import Transform
from quantlab.trial.config import check_trial
from quantlab.trial.planning import make_plan

GROUPED = "search.group_by=layer_role"
SMOOTH = "transform=smoothquant transform.alpha=0.75"
THREE = (
    "search.slots=[{},{transform: smoothquant, transform.alpha: 0.75},{transform: hadamard, rounding: gptq}]"
)


def test_alternatives_are_what_one_types(planted: SearchLab) -> None:
    config = planted.config(THREE)
    assert config.search.alternatives == (OWN, SMOOTH, "transform=hadamard rounding=gptq")
    assert config.of(OWN) == config
    smooth, rotated = (config.of(name) for name in config.search.alternatives[1:])
    assert smooth.transform == SmoothQuant(alpha=0.75) and smooth.rounding == config.rounding
    assert (rotated.transform, rotated.rounding) == (Hadamard(), Gptq())
    assert hash(config.search) == hash(planted.config(THREE).search)


def test_a_setting_alone_changes_the_trials_own_slot(planted: SearchLab) -> None:
    slots = "search.slots=[{},{transform: none},{transform.alpha: 0.9}]"
    config = planted.config("method=smoothquant", slots)
    found = [config.of(name).transform for name in config.search.alternatives]
    assert found == [SmoothQuant(), Transform(), SmoothQuant(alpha=0.9)]


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ("[{transfrom: hadamard}]", "there is no slot 'transfrom' .did you mean 'transform'"),
        ("[{method: peg}]", "there is no slot 'method'; it decides among transform, split, rounding"),
        ("[{transform: hadmard}]", "there is no transform=hadmard .did you mean 'hadamard'.*is one of awq"),
        (
            "[{transform: smoothquant, transform.alhpa: 1}]",
            "transform=smoothquant has no setting transform.alhpa .did you mean 'alpha'",
        ),
        ("[{transform.alpha: 1}]", "the trial's transform, Transform, has no setting transform.alpha"),
        ("[{transform: smoothquant, transform.alpha: 2}]", r"transform.alpha must be .*got 2"),
        ("[{},{}]", "search.slots has own twice"),
        ("[hadamard]", "must list mappings such as .*got 'hadamard'"),
        ("[]", "must be a list of at least one alternative"),
        ("{transform: hadamard}", "search.slots"),
        ("[{transform: 3}]", "transform must be the name of a choice, got 3"),
    ],
)
def test_what_is_wrong_is_named_when_it_is_read(planted: SearchLab, slots: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        planted.config(f"search.slots={slots}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.slots=[{split: outlier_residual}]"], "OutlierResidual fits .*take split=llm_int8"),
        (["search.slots=[{},{split: llm_int8}]"], "search.choices has fp16: take int16 instead"),
        (["search.slots=[{transform: smoothquant, transform.sites: ['*.fnn.in']}]"], "did you mean .*ffn.in"),
    ],
)
def test_what_cannot_be_searched_is_found_before_anything_is_loaded(
    planted: SearchLab, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checked_space(planted.config(*overrides), Memo())


def test_latency_and_sensitivity_take_one_alternative(planted: SearchLab, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latency is measured for one alternative of search.slots.*has 2"):
        search_of(cost="latency", slots=[{}, {"transform": "hadamard"}])
    with pytest.raises(ValueError, match="3 alternatives, which only quantlab search decides among"):
        measure_sensitivity(planted.config(THREE), tmp_path, Memo())


def drawn(prepared: PreparedModel, count: int = 2) -> list[Choices]:
    """The narrowest, the widest and some others, of every alternative."""
    space = prepared.space
    some = [space.precisions(one) for one in (space.narrow, *candidates(space, count), space.wide)]
    return [space.with_slots(one, slots) for one in some for slots in space.alternatives]


TOP_CHANNELS = ["split=top_channels", "split.k=3", "split.share=null"]
FROZEN_COLUMNS = ["split=llm_int8", "split.columns=calibration", "split.threshold=1"]
PLANS = {
    "several": ["search.slots=[{},{transform: smoothquant},{transform: hadamard}]"],
    "a trial's own transform": ["transform=hadamard"],
    "a split": [*TOP_CHANNELS, "search.choices=[int4,int8]", "search.cost=bytes"],
    "some sites": [
        *("search.sites=['*.ffn.*']", "transform=smoothquant", "search.choices=[int8,int16]"),
        *FROZEN_COLUMNS,
    ],
}


@pytest.mark.parametrize("setting", PLANS)
def test_a_candidates_plan_is_its_trials(planted: SearchLab, setting: str) -> None:
    with planted.prepared(GROUPED, *PLANS[setting]) as prepared:
        chosen = list(dict.fromkeys(drawn(prepared)))
        plans = {one: prepared.plan(one) for one in chosen}
    space, material = prepared.space, prepared.material
    assert len({plan.fingerprint for plan in plans.values()}) == len(chosen)
    for one, plan in plans.items():
        config = prepared.config.of(space.slots(one))
        trial = replace(config, method=space.method(config.method, one))
        found = make_plan(trial, material, check_trial(trial, Memo()), prepared.sketches)[0]
        assert found.fingerprint == plan.fingerprint


@pytest.mark.parametrize("engine", ENGINES)
def test_alternatives_in_turn_give_each_plans_answers(planted: SearchLab, engine: str) -> None:
    """Bit for bit, with hidden states reused within an alternative and never between two."""
    with planted.prepared(GROUPED, THREE, f"engine={engine}") as prepared:
        runner, columns, order = prepared.runner(), prepared.label_columns, drawn(prepared)
        plans = [prepared.plan(one) for one in order]
        found = []
        for index, one in enumerate(order):
            found.append(evaluate_candidate(runner, one, columns, None).logits)
            if index % 2:
                runner.keep(one)
        model = prepared.material.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
    assert any((value != before[name]).any() for name, value in model.state_dict().items())
    for plan, logits in zip(plans, found, strict=True):
        with insert(model, plan, engine):
            np.testing.assert_array_equal(logits, prepared.material.predict("").logits)


class Searched:
    """A search in this process, in a folder of its own."""

    def __init__(self, lab: SearchLab, folder: Path, patch: pytest.MonkeyPatch):
        self.lab, self.folder = lab, folder / "searches" / "tiny"
        self.evaluated: list[Choices] = []
        self.interrupt_at = 0
        (folder / "conf").mkdir(parents=True)
        patch.chdir(folder)
        patch.setattr(worker_module, "evaluate_candidate", self.evaluate)

    def evaluate(self, runner: Any, chosen: Choices, *more: Any) -> object:
        self.evaluated.append(chosen)
        if len(self.evaluated) == self.interrupt_at:
            raise KeyboardInterrupt
        return evaluate_candidate(runner, chosen, *more)

    def __call__(self, *more: str) -> dict[str, Any]:
        self.evaluated.clear()
        run_search(self.lab.config(GROUPED, *more), self.folder, Memo())
        best: dict[str, Any] = json.loads((self.folder / "best.json").read_text())
        return best

    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "candidates.csv")


SEARCH = (
    "search.slots=[{},{transform: hadamard},{transform: smoothquant}]",
    "search.trials=8",
    "search.max_drop=10",
)


def test_the_search_picks_the_transform_that_solves_what_was_planted(
    planted: SearchLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SmoothQuant takes the outlier channels out of the range, whose weights are zero: nothing is wide."""
    search = Searched(planted, tmp_path / "whole", monkeypatch)
    best = search(*SEARCH)
    said, table = " ".join(capsys.readouterr().out.split()), search.table()
    assert (best["answer"]["slots"], best["answer"]["cost"]) == ("transform=smoothquant", 0) and best["met"]
    assert "best: 0 16-bit sites with transform=smoothquant" in said
    assert "python -m quantlab.run method=found/tiny transform=smoothquant ..." in said
    assert (
        "# It is this with its slots: method=found/tiny transform=smoothquant"
        in (search.folder / "method.yaml").read_text()
    )
    assert set(table["slots"]) >= {OWN, "transform=smoothquant"} and table["slots"][0] == OWN
    scores = pd.read_csv(search.folder / "scores" / "scores.csv")
    assert list(scores["slots"].unique()) == list(search.lab.config(SEARCH[0]).search.alternatives)
    assert best["rows"] > table["rows"].iloc[1:].sum() + 3 * 16 * (1 + 3)
    assert search(*SEARCH) == best and not search.evaluated

    again = Searched(planted, tmp_path / "interrupted", monkeypatch)
    again.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        again(*SEARCH)
    again.interrupt_at = 0
    assert again(*SEARCH)["answer"]["sites"] == best["answer"]["sites"]
    measured = ["slots", "cost", "metric", "feasible"]
    assert again.table()[measured].equals(table[measured])


def test_without_scores_the_sampler_decides_the_alternative(
    planted: SearchLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Searched(planted, tmp_path / "own", monkeypatch)
    search(*SEARCH, "search.seeded=false", "search.prune_p=0", "search.max_drop=0")
    assert len(search.table()["slots"].unique()) > 1


def test_held_out_rows_measure_the_plan_that_the_answers_trial_makes(
    planted: SearchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQ looks at the activations' grids: the trial of a candidate with wide sites rounds again."""
    monkeypatch.setattr("quantlab.tasks.sampling.FEWEST", 16)
    with planted.prepared(GROUPED, "bits.weights=3", "rounding=gptq") as prepared:
        space, chosen = prepared.space, candidates(prepared.space, 1)[0]
        assert prepared.trial_plan(space.narrow) == prepared.plan(space.narrow)
        plan = prepared.trial_plan(chosen)
        assert replace(plan, activations=()) != prepared.plan(chosen) and plan.activations == (
            prepared.activations(chosen)
        )
        seen: list[Any] = []
        monkeypatch.setattr(
            "quantlab.searching.setup.evaluate_candidate",
            lambda *asked: seen.append(evaluate_candidate(*asked)) or seen[-1],  # type: ignore[func-returns-value]
        )
        assert prepared.measure_held_out(chosen) is not None and prepared.held_out is not None
        batches = prepared.held_out.batches
    model, logits = prepared.material.model, seen[-1].logits
    from quantlab.evaluation.answering import predict

    with insert(model, plan, prepared.config.engine):
        np.testing.assert_array_equal(predict(model, batches, prepared.label_columns, "").logits, logits)


def test_one_alternative_leaves_studies_and_tables_as_they_are(planted: SearchLab) -> None:
    assert [name_of(one) for one in search_of().slots] == [OWN]
    _, space = checked_space(planted.config(), Memo())
    assert not space.decides_slots and list(space.decided) == [v.name for v in space.variables]
    names: Sequence[str] = planted.config("search.slots=[{transform: hadamard}]").search.alternatives
    assert tuple(names) == ("transform=hadamard",)
