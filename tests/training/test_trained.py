"""The training slot: a checkpoint trained further, once, resumably, and quantized like any other."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from decoders import decoder_folder, text
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from labs import Lab
from rich.console import Console
from safetensors.torch import load_file
from test_finetune import headless, learnable_glue  # noqa: F401
from torch import Tensor

from quantlab.cli.conf_dir import CONF
from quantlab.plan.plan import read_plan
from quantlab.storage.memo import Memo
from quantlab.sweeping.training_run import training_tags
from quantlab.tasks.batching import by_length
from quantlab.tracking.tracker import NoTracking, RunEntry, RunOutcome
from quantlab.training.qat import LearningNetwork
from quantlab.trial import trained
from quantlab.trial.key import trial_key
from quantlab.trial.material import resolve_checkpoint

FAST = ("training.recipe.epochs=1", "training.recipe.batch_size=8", "training.recipe.learning_rate=1e-3")


@pytest.fixture
def lab(tiny_bert: Path, tiny_glue: Path, empty_cache: Path) -> Lab:
    return Lab(
        (
            "model=hf",
            f"model.path={tiny_bert}",
            "task=qnli",
            f"task.data_dir={tiny_glue}",
            "task.max_length=32",
            "calibration.samples=16",
            "profile=off",
            "tracking=off",
        )
    )


def folder_of(lab: Lab, *settings: str, memo: Memo | None = None) -> Path:
    config = lab.config(*settings)
    return resolve_checkpoint(config.trained, config.task, memo or Memo()).folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_is_trained_once_and_found_by_what_decides_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path
) -> None:
    first = folder_of(lab, "training=plain", *FAST)
    assert not same(weights(first), weights(tiny_bert))
    history = pd.read_csv(first / trained.HISTORY)
    assert list(history) == ["step", "loss", "penalty", "learning_rate"]
    card = json.loads((first / trained.CARD).read_text())
    assert card["steps"] == len(history) and str(tiny_bert) in card["start"]["title"]
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("trained again"))
    assert folder_of(lab, "training=plain", *FAST, "bits=w4a4") == first  # it simulates no bits
    for other in ("training.recipe.seed=1", "training.recipe.rows=16", "training=qat"):
        with pytest.raises(pytest.fail.Exception):
            folder_of(lab, "training=plain", *FAST, other)


def test_without_training_the_model_is_the_checkpoint(lab: Lab) -> None:
    config = lab.config()
    assert config.trained == config.model


def test_what_is_lost_counts_from_the_checkpoint_that_was_named(lab: Lab) -> None:
    """One reference for all trainings, so that they are compared with each other and with none."""
    memo, further = Memo(), ("training=plain", *FAST)
    none, quantized, fp32 = (lab.trial(*each, memo=memo) for each in ((), further, (*further, "method=fp32")))
    assert "accuracy_trained_fp32" not in none.metrics
    for trained_one in (quantized, fp32):
        np.testing.assert_array_equal(trained_one.reference, none.reference)
        assert trained_one.tags["reference_fingerprint"] == none.tags["reference_fingerprint"]
        assert trained_one.tags["checkpoint_fingerprint"] != none.tags["checkpoint_fingerprint"]
        assert trained_one.metrics["accuracy_trained_fp32"] == fp32.metrics["accuracy"]
    assert not np.array_equal(fp32.logits, fp32.reference)
    at = tuple(each for each in lab.overrides if not each.startswith("model.path"))
    own = Lab((*at, f"model.path={folder_of(lab, *further, memo=memo)}")).trial("method=fp32")
    np.testing.assert_array_equal(own.logits, fp32.logits)
    assert own.tags["key"] != fp32.tags["key"]  # its reference is itself


def test_a_learned_plan_is_the_trials_own(lab: Lab) -> None:
    settings = ("training=qat", *FAST, "bits=w4a8", "bits.symmetric=true", "engine=simulated")
    memo = Memo()
    result, folder = lab.trial(*settings, memo=memo), folder_of(lab, *settings, memo=memo)
    plan = read_plan(folder / "quantlab_plan" / "plan.json")
    assert result.plan == plan
    config = lab.config(*settings)
    loaded = config.trained.load(resolve_checkpoint(config.trained, config.task, memo))
    network = LearningNetwork(loaded.model, plan)
    rows = config.task.load().evaluation.encode(loaded.processor, 32)
    (batch,) = by_length(rows, loaded.processor, len(rows))
    with torch.inference_mode(), network.tapped():
        logits = network.forward(**batch.inputs).logits.numpy()[np.argsort(batch.indices)]
    torch.testing.assert_close(torch.tensor(logits), torch.tensor(result.logits), rtol=1e-4, atol=1e-5)
    other = lab.trial(*(each for each in settings if "bits" not in each), memo=Memo())
    assert other.plan != plan


def test_bits_of_another_trial_leave_the_learned_plan_alone(lab: Lab) -> None:
    folder = folder_of(lab, "training=qat", *FAST)
    own = Lab(tuple(each for each in lab.overrides if "model" not in each))
    at = ("model=hf", f"model.path={folder}")
    learned = read_plan(folder / "quantlab_plan" / "plan.json")
    same, other = own.trial(*at), own.trial(*at, "bits=w4a8")
    assert same.plan == learned and same.tags["learned_plan"] == "used"
    assert other.plan != learned and other.tags["learned_plan"].startswith("left out")


def test_a_decoder_trains_on_the_next_tokens(tmp_path: Path, empty_cache: Path) -> None:
    (tmp_path / "text.txt").write_text(text(3000))
    lab = Lab(
        (
            "model=hf",
            f"model.path={decoder_folder(tmp_path / 'decoder')}",
            "task=perplexity",
            f"task.data={tmp_path / 'text.txt'}",
            "task.window=16",
            "profile=off",
            "tracking=off",
        )
    )
    longer = ("training=plain", *FAST, "training.recipe.epochs=4", "training.recipe.learning_rate=3e-3")
    history = pd.read_csv(folder_of(lab, *longer) / trained.HISTORY)
    assert history["loss"].iloc[-3:].mean() < history["loss"].iloc[:3].mean() - 0.1
    lab.trial("training=qat", *FAST, "calibration.samples=2", "training.recipe.rows=8")


class Recorder(NoTracking):
    """Keeps what it is given."""

    def __init__(self) -> None:
        object.__setattr__(self, "kept", {})

    def replay(self, entry: RunEntry, folder: Path, outcome: RunOutcome) -> str | None:
        self.kept[entry.identity] = (entry, outcome)  # type: ignore[attr-defined]
        return None

    def run_id(self, entry: RunEntry, folder: Path) -> str | None:
        return "id of " + entry.identity


def test_a_training_is_recorded_and_its_trials_lead_to_it(lab: Lab) -> None:
    tracker, config, memo = Recorder(), lab.config("training=plain", *FAST), Memo()
    tags = training_tags(config, tracker, memo)
    folder = resolve_checkpoint(config.trained, config.task, memo).folder
    assert tags == {"training_key": folder.name, "training_run": f"id of training/{folder.name}"}
    ((entry, outcome),) = tracker.kept.values()  # type: ignore[attr-defined]
    assert entry.tags == {"training_key": folder.name}
    assert entry.params["training.recipe.batch_size"] == "8"
    steps = json.loads((folder / trained.CARD).read_text())["steps"]
    assert all(len(outcome.metrics[f"train_{name}"]) == steps for name in ("loss", "learning_rate"))
    assert training_tags(lab.config(), tracker, memo) == {}


def test_the_key_of_a_trial_has_its_training(lab: Lab) -> None:
    keys = {trial_key(lab.config(*more), Memo()) for more in ((), ("training=plain", *FAST))}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("training=qat", "split=llm_int8", "method=dynamic"), "split=none"),
        (("training=qat", "rounding=gptq"), "rounding=nearest"),
        (("training=plain", "training.recipe.rows=1000"), "rows is 1,000, but the training split has 96"),
    ],
)
def test_what_cannot_be_trained_is_refused(lab: Lab, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.trial(*settings)


def test_finetune_makes_the_head_and_then_trains_further(
    headless: Path,  # noqa: F811
    learnable_glue: Path,  # noqa: F811
    empty_cache: Path,
) -> None:
    settings = ["model=bert_base", f"model.base.path={headless}", "recipe@model.recipe=quick", "task=qnli"]
    settings += [f"task.data_dir={learnable_glue}", "task.max_length=32", "training=weight_clipping", *FAST]
    settings += ["model.recipe.batch_size=8", "model.recipe.learning_rate=5e-3"]
    with initialize_config_dir(CONF, version_base="1.3"):
        config = instantiate(compose("finetune", [*settings, "tracking=off"]))
    folder = config.run(Console(quiet=True))
    lab = Lab((*settings, "profile=off", "tracking=off", "calibration.samples=8", "evaluation.limit=16"))
    assert folder_of(lab) == folder
    assert lab.trial().tags["checkpoint"].endswith(folder.name)
