"""The pipeline of arXiv 2603.04308, setting by setting: the alarms that would have stopped it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from quantlab.cli.conf_dir import CONF
from quantlab.storage.memo import Memo
from quantlab.trial.result import TrialResult
from quantlab.trial.trial import run_trial

Run = Callable[..., TrialResult]

# Symmetric activations, running min-max of one padded batch of 8 rows, seen through the quantized network,
# attention internals in FP32, fake quantization that is timed; groups of neighbouring channels.
CALIBRATION = ("calibration.samples=8", "calibration.batch_size=8", "calibration.padding=included")
PIPELINE = (
    *CALIBRATION,
    "calibration.through=quantized",
    "placement=published",
    "bits.symmetric=true",
    "engine=simulated",
)
PROFILE = (
    "profile=quick",
    "profile.iterations=2",
    "profile.warmup=1",
    "profile.seconds=0",
    "profile.length=16",
)
ALWAYS = {"few_calibration_rows", "padding_counted", "products_in_float"}
TIMED = {"simulated_latency"}
PEG = ("method=peg", "method.k=3", "method.permute=none", 'method.sites=["*.ffn.*","*.layer.out"]')


@pytest.fixture
def run(tiny_bert: Path, tiny_glue: Path, tmp_path: Path) -> Run:
    """Trials of a tiny model with one huge weight and two outlier channels, as trained networks have them."""
    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_bert / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.weight"][9, 5] = 7.91
    weights["bert.encoder.layer.0.attention.output.LayerNorm.weight"][[3, 30]] = 40.0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base = (
        "model=hf",
        f"model.path={tmp_path}",
        "task=qnli",
        f"task.data_dir={tiny_glue}",
        "task.max_length=32",
        "tracking=off",
        "profile=off",
    )
    memo = Memo()

    def trial(*overrides: str) -> TrialResult:
        with initialize_config_dir(CONF, version_base="1.3"):
            return run_trial(instantiate(compose("config", [*base, *overrides])), memo)

    return trial


def raised(result: TrialResult) -> set[str]:
    """By name; the machine that runs the tests may well be busy."""
    return {alarm.name for alarm in result.alarms} - {"machine_busy", "too_few_examples"}


def test_w8a8(run: Run) -> None:
    result = run(*PIPELINE, *PROFILE, "calibration=running_minmax")
    assert raised(result) >= ALWAYS | TIMED
    said = {alarm.name: alarm.message for alarm in result.alarms}
    most = result.sites[result.sites["kind"] == "weight"].sort_values("zeroed").iloc[-1]
    assert most["name"] == "bert.encoder.layer.0.output.dense.weight" and most["zeroed"] > 0.5
    assert said["products_in_float"].endswith("attn.probs (2), attn.context (2)")
    assert result.tags["alarms"].split(", ") == list(dict.fromkeys(alarm.name for alarm in result.alarms))


def test_peg(run: Run) -> None:
    assert raised(run(*PIPELINE, "calibration=running_minmax", *PEG)) >= ALWAYS | {"unpermuted_groups"}
    assert "unpermuted_groups" not in raised(run("calibration=running_minmax", *PEG, "method.permute=range"))


def test_percentile(run: Run) -> None:
    result = run(*PIPELINE, "calibration=published_percentile")
    expected = ALWAYS | {
        "one_sided_range",
        "zeroed_weights",
        "saturation",
        "constant_prediction",
        "majority_accuracy",
    }
    assert raised(result) >= expected
    (said,) = [alarm.message for alarm in result.alarms if alarm.name == "one_sided_range"]
    cut, total = (int(word) for word in said.split()[:3:2])
    assert total >= cut > total / 2  # the rest comes after these and has lost its negative side already


def test_the_same_model_as_it_should_be_run(run: Run) -> None:
    """Everything undone: the alarms that are left are about the network itself, its huge weight and its
    answers."""
    result = run(
        "placement=gemm",
        "calibration=percentile",
        "bits.weight_granularity=channel",
        "calibration.samples=16",
    )
    assert raised(result) <= {"majority_accuracy", "majority_accuracy_fp32", "constant_prediction"}
    assert not raised(result) & (ALWAYS | TIMED)
