"""Settings of a search: wrong ones are refused by name."""

import pytest
from searches import SearchLab, search_of

from quantlab.cli.catalogue import register

BAD = [
    ({"budget": 0}, "search.budget must be at least 2 evaluations .*got 0"),
    ({"budget": 1.5}, "search.budget must be at least 2 evaluations"),
    ({"budget": -3}, "search.budget must be at least 0, got -3"),
    ({"budget": True}, "search.budget must be a finite number, got True"),
    ({"trials": 0}, "search.trials must be a whole number of at least 1, got 0"),
    (
        {"mode": "costs"},
        "search.mode must be one of cost, accuracy, pareto; got 'costs' .did you mean 'cost'",
    ),
    ({"sampler": "tpee"}, "search.sampler must be one of .*did you mean 'tpe'"),
    ({"cost": "average_bit"}, "search.cost must be one of .*did you mean 'average_bits'"),
    ({"group_by": "layers"}, "search.group_by must be one of .*did you mean 'layer"),
    ({"reference": "fp16"}, "search.reference must be one of all16, fp32; got 'fp16'"),
    (
        {"decide": "bounds"},
        "search.decide must be one of estimate, bound; got 'bounds' .did you mean 'bound'",
    ),
    ({"mode": "accuracy"}, "search.mode=accuracy needs search.max_cost"),
    ({"mode": "cost", "max_cost": 3.0}, "search.max_cost=3.0 contradicts search.mode=cost"),
    ({"mode": "pareto", "max_cost": 3.0}, "search.max_cost=3.0 contradicts search.mode=pareto"),
    ({"max_drop": -1}, "search.max_drop must be at least 0, got -1"),
    ({"choices": ("int8", "fp32")}, "search.choices: 'fp32' is no quantization"),
    ({"choices": (8, 32)}, "search.choices: 32 is no quantization: 16 bits .* are the widest"),
    ({"choices": ("int8", "fp61")}, "search.choices: .*'fp61' .did you mean 'fp16'"),
    ({"choices": ("fp16",)}, "at least two precisions of different bits"),
    ({"choices": ()}, "at least two precisions of different bits"),
    ({"choices": ("int8", 8, "fp16")}, "at least two precisions of different bits"),
    ({"choices": ("int8", "bf16", "fp16")}, "at least two precisions of different bits"),
    ({"choices": ("int4", "int8")}, "search.cost=sites16 counts 16-bit sites, but search.choices has none"),
    ({"prune_p": 0.5}, r"search.prune_p must be in \[0, 0.5\), got 0.5"),
    ({"prune_p": -0.1}, r"search.prune_p must be in \[0, 0.5\), got -0.1"),
    ({"prune_p": False}, r"search.prune_p must be in \[0, 0.5\), got False"),
    ({"name": "a/b"}, "search.name names a folder: .* got 'a/b'"),
    ({"name": ""}, "search.name names a folder: .* got ''"),
    ({"name": ".."}, "search.name names a folder: .* got '..'"),
    ({"sensitivity_rows": 0}, "search.sensitivity_rows must be a whole number of at least 1"),
    ({"reuse_mb": -1}, "search.reuse_mb must be at least 0"),
    ({"heartbeat_s": 0}, "search.heartbeat_s must be a whole number of at least 1"),
]


@pytest.mark.parametrize(
    "settings, message", BAD, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_what_cannot_be_right_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_of(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 2},
        {"prune_p": 0},
        {"trials": 1},
        {"choices": (4, "bf16")},
        {"name": "w8 a16.2"},
        {"mode": "accuracy", "max_cost": 0},
        {"choices": ("int2", "int3"), "cost": "average_bits"},
        {"reuse_mb": 0},
        {"choices": ["fp16", "int4", "int8"]},
    ],
    ids=str,
)
def test_what_can_be_right_is_taken(settings: dict[str, object]) -> None:
    search = search_of(**settings)
    assert hash(search) == hash(search_of(**settings))
    assert search.widest in search.choices


def test_a_worker_number_may_be_given_on_the_command_line(planted: SearchLab) -> None:
    register("search")
    config = planted.config("search.worker=3", "+sweeps=mixed_precision")
    assert (config.search.worker, config.search.reference) == (3, "all16")
    assert config.bits.symmetric and config.placement.at == "tensor"
