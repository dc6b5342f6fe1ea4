"""A sweep's file and the command line, expanded to trials."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from quantlab.sweeping.sweep import Block, Sweep, SweepRow, sweep_rows, varying


def expanded(
    *blocks: Mapping[str, Any], asked: Mapping[str, Sequence[str]] | None = None, layers: int = 3
) -> list[SweepRow]:
    return sweep_rows(Sweep(trials=blocks), asked or {}, lambda _: layers)


def overrides(*blocks: Mapping[str, Any], **more: Any) -> list[dict[str, str]]:
    return [dict(row.overrides) for row in expanded(*blocks, **more)]


def names(*blocks: Mapping[str, Any], **more: Any) -> list[str]:
    return [row.name for row in expanded(*blocks, **more)]


def test_lists_are_crossed_in_order() -> None:
    found = overrides({"over": {"method": "peg", "method.k": [2, 3], "bits.symmetric": [True, False]}})
    assert found == [
        {"method": "peg", "method.k": k, "bits.symmetric": symmetric}
        for k in "23"
        for symmetric in ("true", "false")
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4, "4"),
        (99.9, "99.9"),
        (True, "true"),
        (None, "null"),
        ("minmax", "minmax"),
        (["*.ffn.in", "*.ffn.out"], '["*.ffn.in","*.ffn.out"]'),
        ([], "[]"),
        ([{"match": "*.ffn.sum", "bits": 16}], '[{match:"*.ffn.sum",bits:16}]'),
    ],
)
def test_values_read_as_hydra_reads_them(value: Any, text: str) -> None:
    assert overrides({"over": {"key.name": [value]}}) == [{"key.name": text}]


def test_a_value_that_is_no_list_is_one_value() -> None:
    assert overrides({"over": {"method.k": 4}}) == [{"method.k": "4"}]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([["{layer}.*"]], ['["0.*"]', '["1.*"]', '["2.*"]']),
        (
            [["{layer}.ffn.*", "embed.*"]],
            ['["0.ffn.*","embed.*"]', '["1.ffn.*","embed.*"]', '["2.ffn.*","embed.*"]'],
        ),
        ([["{deepest}.*"]], ['["2.*"]', '["1.*","2.*"]', '["0.*","1.*","2.*"]']),
        (["{layer}", 7], ["0", "1", "2", "7"]),
    ],
)
def test_values_may_speak_of_layers(value: Any, found: list[str]) -> None:
    assert [row["method.keep"] for row in overrides({"over": {"method.keep": value}})] == found


def test_several_layers_need_a_list() -> None:
    with pytest.raises(
        ValueError, match=r"{deepest} stands for several layers: use it in a list, got '{deepest}'"
    ):
        expanded({"over": {"key": ["{deepest}"]}})


def test_layers_are_counted_only_where_a_value_speaks_of_them() -> None:
    sweep_rows(Sweep(trials=({"over": {"method.k": [2]}},)), {}, lambda _: pytest.fail("no model was needed"))


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ({"over": {"method": "peg", "method.k": 4, "method.permute": "range"}}, "peg k=4 permute=range"),
        ({"name": "PEG", "over": {"method": "peg", "method.k": 4}}, "PEG"),
        ({"name": "PEG", "over": {"method": "peg", "method.k": [4, 6]}}, "PEG k=4"),
        ({}, "trial"),
    ],
)
def test_a_trial_is_named_by_what_varies(block: Mapping[str, Any], name: str) -> None:
    assert names(block)[0] == name


def test_the_layers_are_those_of_the_model_that_the_block_sets() -> None:
    block = {"over": {"model.path": ["a", "b"], "method.keep": [["{layer}.*"]], "bits.norms": 8}}
    told = []
    sweep_rows(
        Sweep(trials=(block,)),
        {"task": ["qnli"], "method.k": ["2", "3"]},
        lambda axes: told.append(dict(axes)) or 1,
    )
    assert told == [{"model.path": ["a", "b"], "bits.norms": ["8"], "method.k": ["2", "3"]}]


@pytest.mark.parametrize(
    ("key", "setting", "name"),
    [
        ("bits.weights", "bits.weights", "weights=4"),
        ("++bits.weights", "bits.weights", "weights=4"),
        ("+x", "x", "4"),
        ("recipe@model.recipe", "recipe", "4"),
    ],
)
def test_names_have_no_prefix_and_no_package_and_the_override_keeps_them(
    key: str, setting: str, name: str
) -> None:
    found = expanded(asked={key: ["4", "8"]})
    assert [row.overrides for row in found] == [{key: "4"}, {key: "8"}]
    assert found[0].settings == {setting: "4"} and varying(found) == (setting,) and found[0].name == name


def test_a_prefix_on_the_command_line_sets_the_same_setting() -> None:
    block = {"over": {"bits.weights": [4, 8], "method": "peg"}}
    assert overrides(block, asked={"++bits.weights": ["6"]}) == [{"++bits.weights": "6", "method": "peg"}]


def test_two_packages_of_one_group_are_refused() -> None:
    with pytest.raises(ValueError, match="db@a and db@b both name db"):
        expanded(asked={"db@a": ["x", "y"], "db@b": ["x", "y"]})


def test_the_command_line_wins_over_the_file() -> None:
    block = {"over": {"method.k": [2, 3, 4], "bits.symmetric": [True, False]}}
    assert len(expanded(block)) == 6
    assert {row["method.k"] for row in overrides(block, asked={"method.k": ["6"]})} == {"6"}
    assert len(expanded(block, asked={"task": ["qnli"]})) == 6  # every trial has it, none varies in it
    assert len(expanded(block, asked={"task": ["qnli", "rte"]})) == 12
    assert len(expanded(asked={"method.k": ["2", "3"]})) == 2  # without a file


def test_blocks_that_become_alike_run_once() -> None:
    blocks = [{"over": {"method.k": 2}}, {"over": {"method.k": 3}}]
    assert len(expanded(*blocks)) == 2 and len(expanded(*blocks, asked={"method.k": ["4"]})) == 1
    named = [{"name": "a", "over": {"method.k": 2}}, {"name": "b", "over": {"method.k": 2}}]
    assert len(expanded(*named)) == 2  # two rows of the table, though one trial


def test_what_varies() -> None:
    found = expanded({"over": {"method": "peg", "method.k": [2, 3]}}, {"over": {"method": "uniform"}})
    assert varying(found) == ("method", "method.k")
    assert varying(found[:2]) == ("method.k",)


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        (
            [{"ovr": {"method.k": 2}}],
            "a key of sweep.trials must be one of over, name; got 'ovr' .did you mean 'over'",
        ),
        ([{"over": ["method.k=2"]}], "over must map overrides to values, got"),
        ([{"over": {"method.k": []}}], "sweep multirun has no trials"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(trials: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expanded(*trials)


def test_a_view_needs_a_target() -> None:
    with pytest.raises(ValueError, match="sweep.views: each needs a _target_"):
        Sweep(views=({"x": "method.k"},))


def test_a_sweep_can_be_hashed() -> None:
    block = {"over": {"method.keep": [["*.ffn.in"]], "bits.rules": [[{"match": "x", "bits": 16}]]}}
    assert hash(Sweep(trials=(block,))) == hash(Sweep(trials=(block,)))
    assert Block.read(block) == Block.read(block)
