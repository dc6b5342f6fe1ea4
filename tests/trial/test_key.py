"""The key of a trial: the same for the same numbers, another for everything that may change one."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantlab.cli.conf_dir import CONF
from quantlab.engines import kernel_choice
from quantlab.methods.uniform import Uniform
from quantlab.storage.memo import Memo
from quantlab.sweeping.run_config import RunConfig
from quantlab.trial import environment
from quantlab.trial import key as identity
from quantlab.trial.config import plain_config
from quantlab.trial.key import trial_key, trial_timing_key
from quantlab.trial.material import fp32_predictions, load_material

CPU = torch.device("cpu")
Configured = Callable[..., RunConfig]


@pytest.fixture
def configured(tiny_bert: Path, tiny_glue: Path) -> Configured:
    """``configured("bits=w4a4")``: the config of a trial on a tiny model, with what is overridden."""
    base = (
        "model=hf",
        f"model.path={tiny_bert}",
        "task=qnli",
        f"task.data_dir={tiny_glue}",
        "task.max_length=32",
        "calibration.samples=4",
        "profile=off",
        "tracking=off",
        "evaluation.limit=32",
    )

    def make(*more: str) -> RunConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            config: RunConfig = instantiate(compose("config", [*base, *more]))
        return config

    return make


def test_the_same_files_elsewhere_are_the_same_trial(
    configured: Configured, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    key = trial_key(configured(), Memo())
    shutil.copytree(tiny_bert, tmp_path / "copied model")
    shutil.copytree(tiny_glue, tmp_path / "copied data")
    moved = (
        f"model.path='{tmp_path}/copied model'",
        f"task.data_dir='{tmp_path}/copied data'",
        "task.hub=else/where",
    )
    held = ["evaluation.holdout=0.2"]  # decides which rows choose among trials, and no answer
    for same in (
        moved,
        held,
        ["model.device=cpu"],
        ["profile=quick"],
        ["profile=paper", "profile.threads=1"],
    ):
        assert trial_key(configured(*same), Memo()) == key, same


@pytest.mark.parametrize(
    "override",
    [
        "bits=w4a4",
        "engine=simulated",
        "placement=gemm",
        "calibration.seed=1",
        "calibration=mse",
        "method=fp32",
        "evaluation.batch_size=8",
        "evaluation.limit=16",
        "evaluation.order=file",
        "task.max_length=16",
        "task.metrics=[matthews_correlation]",
        "runtime=onnxruntime",
    ],
)
def test_what_decides_numbers_is_in_the_key(configured: Configured, override: str) -> None:
    assert trial_key(configured(override), Memo()) != trial_key(configured(), Memo())


CHANGES = {
    "torch": lambda patch: patch.setattr(torch, "__version__", "0.0"),
    "float32 products": lambda patch: patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium"),
    "instructions": lambda patch: patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}),
    "vendor": lambda patch: patch.setattr(environment, "cpu_vendor", lambda: "another"),
    "capability": lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT"),
    "oneDNN's limit": lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41"),
    "no compiler": lambda patch: patch.setattr(environment.native, "library", lambda: None),
    "no exact product": lambda patch: patch.setattr(kernel_choice, "KINDS", ()),
    **{
        library: lambda patch, library=library: patch.setattr(
            environment, "version", lambda name: "0.0" if name == library else "1.0"
        )
        for library in ("transformers", "tokenizers", "numpy", "scipy")
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_environment_is_another_trial(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if change in environment.LIBRARIES:
        monkeypatch.setattr(environment, "version", lambda name: "1.0")
        monkeypatch.setattr(environment, "_versions", environment._versions.__wrapped__)  # read anew
    before, key = environment.deciding_environment(CPU), identity.key_of({}, "checkpoint", "data", CPU, {})
    CHANGES[change](monkeypatch)
    assert environment.deciding_environment(CPU) != before
    assert identity.key_of({}, "checkpoint", "data", CPU, {}) != key


def test_a_trials_own_libraries_are_in_its_key() -> None:
    keys = [identity.key_of({}, "c", "d", CPU, {"version.onnx": version}) for version in ("1", "2")]
    assert keys[0] != keys[1]


def test_threads_are_not_in_the_key_but_in_the_timings(configured: Configured) -> None:
    config, threads = configured("profile=quick"), torch.get_num_threads()
    key, timing = trial_key(config, Memo()), trial_timing_key(config)
    torch.set_num_threads(threads + 1)
    try:
        assert trial_key(config, Memo()) == key and trial_timing_key(config) != timing
    finally:
        torch.set_num_threads(threads)
    assert trial_timing_key(configured("profile=paper")) != timing and trial_timing_key(configured()) == ""


def test_a_timing_is_of_one_processor(configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("profile=quick")
    timing = trial_timing_key(config)
    monkeypatch.setattr(identity, "device_name", lambda device: "another processor")
    assert trial_timing_key(config) != timing


@dataclass(frozen=True, kw_only=True)
class Own(Uniform):
    """A component from elsewhere."""


def test_a_component_from_elsewhere_brings_its_code(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    own = plain_config(replace(configured(), method=Own()))
    keys = []
    for code in ("code", "other code"):
        monkeypatch.setattr(identity, "_source_digest", lambda target, code=code: f"{target} {code}")
        keys.append(identity.key_of(own, "checkpoint", "data", CPU, {}))
    assert keys[0] != keys[1]


def test_a_model_from_elsewhere_keeps_its_settings() -> None:
    own = {"model": {"_target_": "mine.Noisy", "path": "/here", "noise": 0.1}, "engine": "integer"}
    assert identity.deciding_settings(own) == {
        "model": {"_target_": "mine.Noisy", "noise": 0.1},
        "engine": "integer",
    }
    ours = {"model": {"_target_": "quantlab.network.models.Checkpoint", "path": "/here", "device": "auto"}}
    assert identity.deciding_settings(ours) == {"model": {}}


def test_cached_fp32_answers_follow_the_tasks_order_of_labels(
    configured: Configured, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both orders of labels, from one cache and each from an empty one."""
    orders = ("[entailment,not_entailment]", "[not_entailment,entailment]")

    def answers(labels: str) -> np.ndarray:
        config = configured(f"task.labels={labels}")
        return fp32_predictions(load_material(config.model, config.task, config.evaluation, Memo())).logits

    cached = [answers(labels) for labels in orders]
    monkeypatch.setenv("QUANTLAB_CACHE", str(tmp_path))
    second = answers(orders[1])
    np.testing.assert_array_equal(cached[1], second)
    np.testing.assert_array_equal(cached[0], second[:, ::-1])
    assert len(list((own_cache / "fp32").iterdir())) == 1  # the network is asked once
