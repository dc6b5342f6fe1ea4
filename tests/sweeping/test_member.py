"""A trial on its own and as a sweep's member, in this process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantlab.cli.catalogue import register
from quantlab.cli.commands import sweep_files
from quantlab.cli.conf_dir import CONF
from quantlab.evaluation.answering import Evaluation
from quantlab.results.reading import TrialRecord
from quantlab.results.store import TrialStore, finished_summary, key_in, locked_folder
from quantlab.storage.memo import Memo
from quantlab.sweeping.member import entry, run_member, run_single
from quantlab.sweeping.prepare import PreparedTrial, with_timing_names
from quantlab.sweeping.run_config import RunConfig
from quantlab.sweeping.sweep import Member, SweepRow, sweep_rows
from quantlab.trial.key import trial_key
from quantlab.trial.result import is_reference

register()


@pytest.fixture
def config(tiny_bert: Path, tiny_glue: Path) -> RunConfig:
    return configured(
        "model=hf",
        f"model.path={tiny_bert}",
        "task=qnli",
        f"task.data_dir={tiny_glue}",
        "task.max_length=32",
        "calibration.samples=4",
        "profile=off",
    )


def configured(*overrides: str) -> RunConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        built: RunConfig = instantiate(compose("config", ["tracking=off", *overrides]))
    return built


def member(key: str) -> Member:
    return Member(
        number=1, total=2, name="k=4", key=key, sweep="s", parent="p", swept=("method.k=4", "a.b=c=d")
    )


def test_the_key_is_known_before_the_trial_runs(config: RunConfig, tmp_path: Path) -> None:
    key = trial_key(config, Memo())
    result, _ = run_single(config, "alone", tmp_path, Memo())
    assert result.tags["key"] == key and finished_summary(tmp_path, key) is not None


def test_a_result_of_another_key_is_not_reused(config: RunConfig, tmp_path: Path) -> None:
    run_single(config, "alone", tmp_path, Memo())
    assert finished_summary(tmp_path, "another") is None


def test_what_another_process_finished_is_taken(config: RunConfig, tmp_path: Path) -> None:
    key, memo = trial_key(config, Memo()), Memo()
    folder = TrialStore(tmp_path).folder(key)
    first = run_member(config, member(key), folder, memo)
    written = (folder / "result.json").stat().st_mtime_ns
    assert run_member(config, member(key), folder, memo)["metrics"] == first["metrics"]
    assert (folder / "result.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("content", ["", "\0\0", "{", "[]", "{}"])
def test_a_result_that_a_power_failure_emptied_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert finished_summary(tmp_path, "key") is None


@pytest.mark.parametrize(("method", "reference"), [("fp32", True), ("uniform", False)])
def test_a_trial_says_itself_whether_it_is_fp32(
    method: str, reference: bool, config: RunConfig, tmp_path: Path
) -> None:
    """FP16 activations on FP32 weights answer as FP32 does and weigh as much."""
    fp16 = configured(f"method={method}", "bits.weights=32", "bits.activations=fp16", "bits.embeddings=32")
    config = replace(config, method=fp16.method, bits=fp16.bits)
    result, _ = run_single(config, "alone", tmp_path, Memo())
    assert result.metrics["size_bytes"] == result.metrics["size_fp32_bytes"]
    assert (
        is_reference(result.tags)
        == reference
        == TrialRecord(number=1, name="", folder=tmp_path, summary=result.summary()).reference
    )


def test_a_trial_with_another_key_here_is_not_run(config: RunConfig, tmp_path: Path) -> None:
    """As on a node with another processor than the one that started the sweep."""
    with pytest.raises(
        ValueError, match="trial 'k=4' has another key here .* start the sweep on a machine like those"
    ):
        run_member(config, member("of another processor"), tmp_path / "trial", Memo())
    assert not (tmp_path / "trial").exists()


def test_profiles_of_one_trial_have_folders_of_their_own() -> None:
    def trial(key: str, timing: str) -> PreparedTrial:
        row = SweepRow(block="", name="", overrides={})
        return PreparedTrial(
            row=row, key=key, timing=timing, overrides=(), params={}, evaluation=Evaluation()
        )

    trials = with_timing_names(
        [trial("a", "x"), trial("b", "x"), trial("b", "y"), trial("b", ""), trial("c", "z"), trial("c", "z")]
    )
    assert [one.key for one in trials] == ["a", "b-x", "b-y", "b-untimed", "c", "c"]
    assert [key_in(one.key) for one in trials] == ["a", "b", "b", "b", "c", "c"]


def test_what_was_timed_elsewhere_is_run_again(config: RunConfig, tmp_path: Path) -> None:
    """A result with another timing key is none for a sweep that times, and one for a sweep that does not."""
    run_single(config, "alone", tmp_path, Memo())
    key = trial_key(config, Memo())
    assert finished_summary(tmp_path, key, "of this processor") is None
    path = tmp_path / "result.json"
    summary = json.loads(path.read_text())
    assert summary["tags"]["timing_key"] == ""
    path.write_text(json.dumps(summary | {"tags": summary["tags"] | {"timing_key": "of this processor"}}))
    for timing, there in (("of this processor", True), ("of another", False), ("", True)):
        assert (finished_summary(tmp_path, key, timing) is not None) is there


def test_a_sweep_without_m_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="peg_k is a sweep: it needs -m"):
        run_single(configured("+sweeps=peg_k"), "alone", tmp_path, Memo())


def test_what_the_tracker_is_told() -> None:
    told = entry(member("key"), {"method.k": "4", "method": "peg"})
    assert told.params == {"method": "peg", "method.k": "4", "a.b": "c=d"} and told.tags == {
        "sweep": "s",
        "trial": "1 of 2",
    }
    assert (told.parent, told.identity) == ("p", "s/key")


def test_a_held_folder_is_held(tmp_path: Path) -> None:
    sweep = "sweep x"
    with (
        locked_folder(tmp_path, sweep, wait=False),
        pytest.raises(BlockingIOError, match="sweep x is being run by another process"),
        locked_folder(tmp_path, sweep, wait=False),
    ):
        pass
    with locked_folder(tmp_path, sweep, wait=False):
        pass


@pytest.mark.parametrize("path", sweep_files("sweep"), ids=lambda path: path.stem)
def test_every_sweep_composes_into_distinct_trials(path: Path) -> None:
    """The layer sets are counted for six layers; how many trials each has, its first lines say."""
    data = ["task.data=/nowhere"] if path.stem in ("decoder_table", "vit_table") else []
    config = configured(f"+sweeps={path.stem}", *data)
    assert config.sweep.name == path.stem and config.sweep.question and config.sweep.views
    found = sweep_rows(config.sweep, {}, lambda _: 6)
    head = path.read_text().split("sweep:")[0]
    assert f"{len(found)} " in head, len(found)
    assert len({row.name for row in found}) == len(found)
    for row in found[:: max(1, len(found) // 3)]:
        overrides = [f"{key}={value}" for key, value in row.overrides.items()]
        configured(f"+sweeps={path.stem}", *data, *overrides)
