"""From the command line and a sweep's file to trials: every setting arrives in every trial that should have
it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from test_quoting import YAML_TEXTS

from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF
from quantlab.sweeping.prepare import PreparedSweep, prepare_sweep

register()

Prepared = Callable[..., tuple[PreparedSweep, list[DictConfig]]]


@pytest.fixture
def prepared(tiny_bert: Path, tiny_glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """``prepared(*words, blocks=...)``: a sweep of these blocks and words, and the settings of its trials."""
    given = [
        "model=hf",
        f"model.path={tiny_bert}",
        "task=qnli",
        f"task.data_dir={tiny_glue}",
        "task.max_length=32",
        "evaluation.limit=16",
        "calibration.samples=4",
        "profile=off",
        "tracking=off",
    ]
    monkeypatch.chdir(tmp_path)

    def prepared(
        *words: str, blocks: Sequence[Mapping[str, Any]] = (), without: str = "-"
    ) -> tuple[PreparedSweep, list[DictConfig]]:
        typed = [*(word for word in given if not word.startswith(without)), *words]
        if blocks:
            (tmp_path / "sweeps").mkdir(exist_ok=True)
            content = json.dumps({"sweep": {"name": "mine", "trials": list(blocks)}})
            (tmp_path / "sweeps" / "mine.yaml").write_text(f"# @package _global_\n{content}")
            typed += ["+sweeps=mine", f"hydra.searchpath=[file://{tmp_path}]"]
        with initialize_config_dir(CONF, version_base="1.3"):
            loader = GlobalHydra.instance().hydra.config_loader
            master = loader.load_configuration("config", typed, run_mode=RunMode.MULTIRUN)
            arguments = OmegaConf.to_container(master.hydra.overrides.task)
            sweeping = prepare_sweep(loader, master, arguments)
            settings = [loader.load_sweep_config(master, list(trial.overrides)) for trial in sweeping.trials]
        return sweeping, settings

    return prepared


def test_a_setting_of_the_command_line_holds_for_every_block(prepared: Prepared) -> None:
    blocks = [
        {"name": "A", "over": {"bits.symmetric": [True, False]}},
        {"name": "B", "over": {"method": "peg", "method.k": 4}},
    ]
    _, settings = prepared("++bits.symmetric=true", blocks=blocks)
    assert [(each.method.get("k"), each.bits.symmetric) for each in settings] == [(None, True), (4, True)]


@pytest.mark.parametrize("place", ["command line", "file", "file and command line"])
def test_checkpoints_are_an_axis(
    place: str, prepared: Prepared, tiny_bert: Path, make_model: MakeModel
) -> None:
    other = make_model(seed=1)
    paths = [str(tiny_bert), str(other)]
    if place == "command line":
        sweeping, settings = prepared(f"model.path={','.join(paths)}", without="model.path")
    else:
        without = "model.path" if place == "file" else "-"
        sweeping, settings = prepared(blocks=[{"over": {"model.path": paths}}], without=without)
    expected = paths[:1] if place == "file and command line" else paths  # what the command line sets wins
    assert [each.model.path for each in settings] == expected
    assert [trial.row.name for trial in sweeping.trials] == [f"path={path}" for path in expected]
    assert len(sweeping.unique) == len(expected)


def test_layers_are_counted_in_the_checkpoint_of_the_block(
    prepared: Prepared, tiny_bert: Path, make_model: MakeModel
) -> None:
    deep, keep = str(make_model(layers=3)), {"method": "mixed_precision", "method.keep": [["{layer}.*"]]}
    sweeping, _ = prepared(blocks=[{"over": {"model.path": deep, **keep}}], without="model.path")
    assert len(sweeping.trials) == 3
    with pytest.raises(
        ValueError, match=r"{layer} and {deepest} need models of one depth .* 2 \(.*\), 3 \(.*\) layers"
    ):
        prepared(blocks=[{"over": {"model.path": [str(tiny_bert), deep], **keep}}], without="model.path")


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_text_of_a_sweeps_file_arrives_as_this_text(prepared: Prepared, step: int) -> None:
    """Every fifth text, or all. What reads and quotes them is tested in test_quoting.py."""
    texts = [text for text in YAML_TEXTS if "${" not in text][::step]  # which YAML files interpolate
    _, settings = prepared(blocks=[{"over": {"sweep.question": texts}}])
    assert [each.sweep.question for each in settings] == texts


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("${hydra:runtime.cwd}/res", "res"),
        pytest.param("res/${hydra:job.config_name}", "res/config", marks=pytest.mark.slow),
        ("'données, v=2 {x}'", "données, v=2 {x}"),
        pytest.param("multirun", "multirun", marks=pytest.mark.slow),
    ],
)
def test_the_sweeps_folder_may_speak_of_hydras_own_values(
    folder: str, expected: str, prepared: Prepared, tmp_path: Path
) -> None:
    sweeping, _ = prepared("bits.weights=4,8", f"hydra.sweep.dir={folder}")
    assert sweeping.store.root == tmp_path / expected


def test_the_sweeps_folder_takes_the_time_once(prepared: Prepared) -> None:
    sweeping, settings = prepared("bits.weights=4,8", "hydra.sweep.dir=res/${now:%H-%M-%S-%f}")
    assert {each.hydra.sweep.dir for each in settings} != set() and sweeping.store.root.parent.name == "res"


def test_a_view_that_compares_rows_refuses_trials_that_stop(prepared: Prepared) -> None:
    view = "{_target_: quantlab.sweeping.views.Effects, block: a, factors: [bits.weights]}"
    words = ("bits.weights=4,8", f"sweep.views=[{view}]", "evaluation.max_drop=1")
    with pytest.raises(ValueError, match="the sweep's view Effects needs the answers to all rows"):
        prepared(*words, "evaluation.until=decided")


def test_axes_may_follow_each_other(prepared: Prepared) -> None:
    sweeping, settings = prepared("bits.activations=4,8", "bits.embeddings=${bits.activations}")
    assert [(each.bits.activations, each.bits.embeddings) for each in settings] == [(4, 4), (8, 8)]
    assert len(sweeping.unique) == 2
