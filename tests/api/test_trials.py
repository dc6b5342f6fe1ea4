"""The package's calls: one trial from overrides, from a model in memory, a plan in a model, a folder read
back."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeModel
from hydra.errors import CompactHydraException, ConfigCompositionException
from pictures import image_processor, tiny_vit, write_classes
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import quantlab
from quantlab.plan.plan import QuantPlan

LABELS = ("entailment", "not_entailment")


@pytest.fixture(scope="module")
def checkpoint(make_model: MakeModel) -> Path:
    """A checkpoint whose labels stand in the other order than the task's, and whose answers differ."""
    return make_model(layers=1, labels=LABELS[::-1], initializer_range=0.5)


@pytest.fixture
def overrides(tiny_glue: Path) -> list[str]:
    task = ["task=qnli", f"task.data_dir={tiny_glue}", "task.max_length=32"]
    return [*task, "evaluation.limit=32", "calibration.samples=8", "profile=off", "method=peg", "method.k=4"]


def loaded(folder: Path, **options: object) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    assert isinstance(model, PreTrainedModel)
    return model.eval()  # type: ignore[no-untyped-call, no-any-return]


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, quantlab; print(len({'torch', 'numpy', 'hydra', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_what_the_package_offers() -> None:
    assert set(quantlab.__all__) <= set(dir(quantlab))
    assert all(getattr(quantlab, name).__doc__ for name in quantlab.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'run_trials'; it has "):
        quantlab.run_trials  # noqa: B018


def test_a_trial_of_a_checkpoint_and_of_the_same_in_memory(
    checkpoint: Path, overrides: list[str], tmp_path: Path
) -> None:
    result = quantlab.run_trial("model=hf", f"model.path={checkpoint}", *overrides)
    model, tokenizer = loaded(checkpoint).train(), AutoTokenizer.from_pretrained(checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = quantlab.run_trial(*overrides, model=model, processor=tokenizer)
    assert np.array_equal(result.logits, again.logits) and result.plan == again.plan
    assert again.tags["label_order"] == "matched"
    assert model.training and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )
    same = quantlab.run_trial(*overrides, "method.k=2", model=model, tokenizer=tokenizer)
    assert same.tags["checkpoint"] == again.tags["checkpoint"]  # saved once
    with torch.no_grad():
        model.classifier.bias += 1
    changed = quantlab.run_trial(*overrides, model=model, processor=tokenizer)
    assert changed.tags["checkpoint_fingerprint"] != again.tags["checkpoint_fingerprint"]

    result.save(tmp_path / "trial")
    trial = quantlab.load_trial(tmp_path / "trial")
    assert (trial.plan, dict(trial.tags), dict(trial.config)) == (result.plan, result.tags, result.config)
    assert trial.metrics["accuracy"] == result.metrics["accuracy"]
    assert np.array_equal(trial.answers.logits, result.logits)
    assert np.array_equal(trial.answers.labels, result.labels)


def test_a_network_of_images_in_memory(tmp_path: Path) -> None:
    classes = write_classes(tmp_path / "data", 20)
    settings = ["task=images", f"task.data={classes}", "evaluation.limit=8", "calibration.samples=8"]
    model = tiny_vit(2)
    model.config.id2label = {0: "dog", 1: "cat"}
    result = quantlab.run_trial(
        *settings, "profile=off", "model.device=cpu", model=model, processor=image_processor()
    )
    assert result.tags["label_order"] == "matched" and result.logits.shape == (8, 2)
    assert np.isfinite(result.metrics["accuracy_drop"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_plan_in_a_model(checkpoint: Path, overrides: list[str], tmp_path: Path, attention: str) -> None:
    result = quantlab.run_trial("model=hf", f"model.path={checkpoint}", *overrides)
    result.save(tmp_path)
    model, tokenizer = (
        loaded(checkpoint, attn_implementation=attention),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    inputs = tokenizer(["what is the cat"], ["the cat is old"], return_tensors="pt")

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model(**inputs).logits.clone()  # type: ignore[no-any-return]

    before, inside = logits(), []
    for plan in (result.plan, tmp_path, str(tmp_path / "plan.json")):
        with quantlab.insert(model, plan) as inserted:
            inside.append(logits())
        assert set(inserted.calls.values()) == {1}
    assert torch.equal(inside[0], inside[1]) and torch.equal(inside[0], inside[2])
    assert torch.equal(logits(), before) and not torch.equal(inside[0], before)
    other = QuantPlan(weights=result.plan.weights * 2)
    with pytest.raises(ValueError, match="twice"), quantlab.insert(model, other):
        pass


@pytest.mark.parametrize(
    "override, message",
    [
        ("tracking=sqlite", "tracking=sqlite: run_trial runs one trial and records it nowhere"),
        ("+sweeps=peg_k", "quantlab run takes sweeps"),
        ("model=minilm", "model=minilm names another model than the one in memory"),
    ],
)
def test_settings_that_are_not_a_trials(checkpoint: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        quantlab.run_trial(
            override, model=loaded(checkpoint), tokenizer=AutoTokenizer.from_pretrained(checkpoint)
        )
    assert message in str(caught.value)


def test_a_model_that_a_trial_cannot_read_back(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    encoder = AutoModel.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="BertForSequenceClassification or BertLMHeadModel, got BertModel"):
        quantlab.run_trial(model=encoder, processor=tokenizer)
    with pytest.raises(ValueError, match="model must be a model of transformers, got Linear"):
        quantlab.run_trial(model=torch.nn.Linear(1, 1), tokenizer=tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="comes with its tokenizer or image processor"):
        quantlab.run_trial(model=encoder)
    with pytest.raises(ValueError, match="processor= and tokenizer= are two names for one thing"):
        quantlab.run_trial(model=encoder, tokenizer=tokenizer, processor=tokenizer)


def test_overrides_that_do_not_compose(tmp_path: Path) -> None:
    with pytest.raises(ConfigCompositionException, match=r"Could not find 'method/pge'"):
        quantlab.run_trial("method=pge")
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("_target_: nowhere.Mine")
    with pytest.raises(
        CompactHydraException, match=r"method: nowhere.Mine cannot be imported: No module named"
    ):
        quantlab.run_trial("method=mine", config_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        quantlab.run_trial("method=mine", config_dir=tmp_path / "none")
