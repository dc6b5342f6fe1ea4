"""Models: where they come from, how they load, and which logit is which label."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import QNLI, edit_config, load, task_of
from conftest import MakeModel
from safetensors.torch import load_file, save_file

from quantlab.network import checkpoint
from quantlab.network.checkpoint_sources import Packaged, Pretrained
from quantlab.network.labels import label_columns
from quantlab.network.models import Checkpoint, FineTuned, Recipe
from quantlab.tasks.text import TextClassification


def test_a_loaded_model_is_fp32_eager_and_at_rest(tiny_bert: Path) -> None:
    loaded = load(tiny_bert, device="cpu")
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config._attn_implementation == "eager"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tags == {"label_order": "matched", "checkpoint": str(tiny_bert), "device": "cpu"}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_family_loads_at_any_depth(make_model: MakeModel, family: str, layers: int) -> None:
    loaded = load(make_model(family, layers), device="cpu")
    assert loaded.model.config.num_hidden_layers == layers
    tokens = loaded.processor("what is the cat", "a red bird", return_tensors="pt")
    assert torch.isfinite(loaded.model(**tokens).logits).all()


def test_half_precision_files_run_in_fp32(copy: Path) -> None:
    file = copy / "model.safetensors"
    save_file(
        {name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"}
    )
    edit_config(copy, dtype="float16")
    assert load(copy).model.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "task", "columns", "order"),
    [
        (("entailment", "not_entailment"), QNLI, (0, 1), "matched"),
        (("NOT-Entailment", "Entailment"), QNLI, (1, 0), "matched"),
        (
            ("Contradiction", "Neutral", "Entailment"),
            ("entailment", "neutral", "contradiction"),
            (2, 1, 0),
            "matched",
        ),
        (("LABEL_0", "LABEL_1"), QNLI, (0, 1), "assumed"),
        (("0", "1"), QNLI, (0, 1), "assumed"),
        (("LABEL_0",), (), (0,), "regression"),
    ],
)
def test_label_order(make_model: MakeModel, model: tuple, task: tuple, columns: tuple, order: str) -> None:
    config = checkpoint.read_config(make_model(labels=model))
    assert label_columns(config, task_of(task), dict) == (columns, order)


THREE = ("entailment", "neutral", "Contradiction")


@pytest.mark.parametrize(
    ("model", "data", "columns", "order"),
    [
        (("negative", "positive"), ("positive", "negative"), (1, 0), "matched"),
        (THREE, ("contradiction", "entailment"), (2, 0, 1), "matched"),  # all logits stay, the data's first
        (QNLI, ("0", "1"), (0, 1), "assumed"),
        (THREE, ("0", "2"), (0, 2, 1), "assumed"),
        (("LABEL_0", "LABEL_1"), ("0", "1"), (0, 1), "assumed"),
        (("0", "1"), ("1", "0"), (1, 0), "matched"),
    ],
)
def test_classes_of_the_data_are_the_checkpoint_s_by_name_or_number(
    make_model: MakeModel, model: tuple, data: tuple, columns: tuple, order: str
) -> None:
    config = checkpoint.read_config(make_model(labels=model))
    task = TextClassification(name="t", labels=(), metrics=("accuracy",), data="d", text=("a",), label="b")
    assert label_columns(config, task, lambda: dict.fromkeys(data, "d")) == (columns, order)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            QNLI,
            {"entailment": "here", "not_entailmant": "d.csv: column 'b', line 7"},
            r"d\.csv: column 'b', line 7: the checkpoint does not know label 'not_entailmant' \(did you mean "
            r"'not_entailment'.*it answers entailment, not_entailment",
        ),
        (QNLI, {"1": "first", "2": "second"}, "second: the checkpoint does not know label '2'"),
        (QNLI, {"0": "first", "1": "second", "x": "third"}, "third: the checkpoint does not know label 'x'"),
        (
            ("LABEL_0", "LABEL_1"),
            {"bad": "", "good": ""},
            r"no names .*task\.labels=\[bad,good\], in the order",
        ),
        (("LABEL_0",), {"bad": "", "good": ""}, "one logit"),
    ],
)
def test_classes_that_the_checkpoint_does_not_know_are_named(
    make_model: MakeModel, model: tuple, data: dict[str, str], message: str
) -> None:
    config = checkpoint.read_config(make_model(labels=model))
    task = TextClassification(name="t", labels=(), metrics=("accuracy",), data="d", text=("a",), label="b")
    with pytest.raises(ValueError, match=message):
        label_columns(config, task, lambda: data)


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (
            ("positive", "negative"),
            QNLI,
            r"contradict.*\['positive', 'negative'\].*\['entailment', 'not_entailment'\]",
        ),
        (("LABEL_1", "LABEL_0"), QNLI, "contradict"),
        (("entailment", "Entailment"), QNLI, "contradict"),
        (("a", "b", "c"), QNLI, r"3 labels, 2 wanted.*\['a', 'b', 'c'\]"),
        (("LABEL_0", "LABEL_1"), (), "2 labels, 1 wanted.*one score"),
    ],
)
def test_contradicting_labels_are_refused(
    make_model: MakeModel, model: tuple, task: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(make_model(labels=model), task_of(task))


@pytest.mark.parametrize(
    ("labels", "problem", "message"),
    [
        (("LABEL_0",), None, r"one logit is a score that waits for a threshold.*entailment"),
        (QNLI, "multi_label_classification", "multi_label_classification, but quantlab judges one label"),
        (QNLI, "regression", "problem_type is regression"),
    ],
)
def test_answers_that_are_no_choice_of_one_label_are_refused(
    make_model: MakeModel, labels: tuple, problem: str | None, message: str
) -> None:
    config = checkpoint.read_config(make_model(labels=labels, problem_type=problem))
    with pytest.raises(ValueError, match=message):
        label_columns(config, task_of(), dict)


def test_devices() -> None:
    with pytest.raises(ValueError, match=r"device must be one of auto, cpu, cuda; got 'gpu'"):
        Checkpoint(path="x", device="gpu")
    assert Checkpoint(path="x", device="cpu").torch_device() == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_an_error_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="torch sees no GPU"):
        load("./nowhere", device="cuda")


def test_a_package_that_is_not_installed_names_its_extra() -> None:
    with pytest.raises(FileNotFoundError, match=r"pip install 'quantlab\[demo\]'"):
        Packaged(package="no_such_package", inside="model", extra="demo").folder()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size.*got 2.5"),
        ({"learning_rate": -1.0}, "learning_rate.*got -1.0"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"warmup_fraction": 1.5}, "warmup_fraction must be at most 1, got 1.5"),
        ({"bf16": "yes"}, "bf16 must be one of auto, True, False; got 'yes'"),
    ],
)
def test_recipes_check_themselves(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_a_model_that_is_not_trained_yet_names_the_command(tiny_bert: Path, tiny_glue: Path) -> None:
    recipe = Recipe(
        epochs=3, learning_rate=5e-5, batch_size=8, warmup_fraction=0, weight_decay=0, seed=1, bf16=False
    )
    spec = FineTuned(name="bert_base", base=Pretrained(path=str(tiny_bert)), recipe=recipe)
    task = replace(task_of(), name="qnli", data_dir=str(tiny_glue), max_length=128)
    with pytest.raises(
        FileNotFoundError, match="run python -m quantlab.finetune model=bert_base task=qnli, with"
    ):
        spec.resolve(task, task.load)


def test_the_real_checkpoint_loads(shared: Path) -> None:
    loaded = load(shared / "models" / "minilm-qnli", task_of(max_length=128), device="cpu")
    assert loaded.model.num_parameters() == 22_713_986
    assert loaded.tags["label_order"] == "matched"
