"""Every config composes and builds, and says neither more nor less than its component has fields."""

from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.sweeping.run_config import RunConfig
from quantlab.sweeping.training_run import TrainingConfig

register()

GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "base")
    for folder in sorted(Path(CONF).iterdir())
    if folder.is_dir()
}
OPTIONS = [(group, option) for group, options in GROUPS.items() if group != "recipe" for option in options]
# What a config leaves to the user, and where Hydra's own run would be asked for its folder.
NEEDED = {
    ("model", "hf"): ["model.path=/nowhere"],
    ("task", "text"): ["task.data=/nowhere.csv", "task.text=sentence"],
    **{("task", name): ["task.data=/nowhere"] for name in ("images", "last_word", "perplexity")},
    ("tracking", "server"): ["tracking.uri=http://localhost:5000"],
    ("tracking", "sqlite"): ["tracking.uri=sqlite:////tmp/mlflow.db"],
}

options = pytest.mark.parametrize("group, option", OPTIONS, ids=map("=".join, OPTIONS))


def composed(*overrides: str, name: str = "config") -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, ["tracking=off", *overrides] if name == "config" else list(overrides))


@cache
def with_option(group: str, option: str) -> DictConfig:
    return composed(f"{group}={option}", *NEEDED.get((group, option), []))


def test_groups_are_found() -> None:
    assert {"uniform", "peg", "mixed_precision", "fp32"} <= set(GROUPS["method"])
    assert GROUPS.keys() - {"recipe", "launcher"} == {field.name for field in fields(RunConfig)} - {
        "sweep",
        "engine",
    }


@options
def test_builds(group: str, option: str) -> None:
    config, again = (instantiate(with_option(group, option)) for _ in range(2))
    assert isinstance(config, RunConfig)
    assert (config, hash(config)) == (again, hash(again))


def components(tree: Any, path: str = "") -> list[tuple[str, DictConfig]]:
    """Every part of a config that names a ``_target_``."""
    if not isinstance(tree, DictConfig):
        return []
    parts = [part for key in tree for part in components(tree[key], f"{path}.{key}")]
    return ([(path, tree)] if "_target_" in tree else []) + parts


@options
def test_keys_are_the_fields(group: str, option: str) -> None:
    for path, tree in components(with_option(group, option)):
        kind = get_class(tree._target_)
        assert is_dataclass(kind), path
        extra = {"_convert_"} if path == "" else set()
        # The length of a perplexity's rows is its window, and images have none.
        own = {"max_length"} if option in ("perplexity", "images") and path == ".task" else set()
        assert (
            set(tree) - {"_target_"} - extra == {field.name for field in fields(kind) if field.init} - own
        ), path


@options
def test_keys_are_written_once(group: str, option: str) -> None:
    """YAML takes the last of two equal keys without a word."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key) for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    assert yaml.load((Path(CONF) / group / f"{option}.yaml").read_text(), Strict)


@pytest.mark.parametrize("option", GROUPS["recipe"])
@pytest.mark.parametrize("model", ["minilm", "bert_base"])
def test_recipes(model: str, option: str) -> None:
    config = composed(f"model={model}", f"recipe@model.recipe={option}", "tracking=off", name="finetune")
    assert isinstance(instantiate(config), TrainingConfig)
    assert config.model.recipe == OmegaConf.load(Path(CONF) / "recipe" / f"{option}.yaml")


def test_published_precisions() -> None:
    for option in GROUPS["bits"]:
        weights, activations = map(int, option.removeprefix("w").split("a"))
        bits = with_option("bits", option).bits
        assert (bits.weights, bits.activations) == (weights, activations)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.nothing=1"],
        ["nothing=1"],
        ["method=nothing"],
        ["bits.weight=8"],
        ["calibration.percentile=99"],  # min-max has none
        ["method.k=3"],  # uniform has none
        ["tasks=qnli"],
    ],
    ids=str,
)
def test_unknown_keys_do_not_compose(overrides: list[str]) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(*overrides)


@pytest.mark.parametrize(
    "key", ["method", "bits", "calibration", "placement", "evaluation", "profile", "task", "model"]
)
def test_added_keys_do_not_build(key: str) -> None:
    with pytest.raises(InstantiationException, match="unexpected keyword argument 'nothing'"):
        instantiate(composed(f"+{key}.nothing=1"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["bits.weights=1"], "bits.weights: bits must be a whole number in 2..16, got 1"),
        (["method=peg", "method.k=0"], "k must be a whole number of at least 1, got 0"),
        (["calibration=percentile", "calibration.percentile=0.1"], "got 0.1 (did you mean 99.9?)"),
        (["method=mixed_precision", "method.format=float16"], "method.format must be one of"),
        (["placement.at=tensors"], "placement.at must be one of"),
        (["calibration.through=fp16"], "calibration.through must be one of"),
        (["evaluation.limit=0"], "evaluation.limit must be a whole number"),
        (["bits.rules=[{match: x}]"], "a rule is {match: <glob>, bits: <precision>}"),
    ],
    ids=str,
)
def test_bad_values_name_their_place(overrides: list[str], message: str) -> None:
    with pytest.raises(InstantiationException) as caught:
        instantiate(composed(*overrides))
    assert message in str(caught.value)
    assert f"full_key: {overrides[-1].split('.')[0]}" in str(caught.value)
