"""Training: the same seed gives the same weights, it learns, and what it stores is whole or not there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeModel, qnli_rows
from processes import Python
from rich.console import Console
from safetensors.torch import load_file, save_file

from quantlab.network import checkpoint
from quantlab.network.checkpoint_sources import Pretrained
from quantlab.network.models import Checkpoint, FineTuned, Recipe, ResolvedCheckpoint
from quantlab.network.processors import read_tokenizer
from quantlab.tasks.glue import Glue
from quantlab.training import finetuning
from quantlab.training import recipe as training
from quantlab.training.finetuning import FineTuning

RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=5e-3, bf16=False)  # enough to learn from learnable_glue
SILENT = Console(quiet=True)


def qnli(folder: Path) -> Glue:
    return Glue(
        name="qnli",
        config="qnli",
        text=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        max_length=32,
        data_dir=str(folder),
    )


def spec_of(base: Path, recipe: Recipe = RECIPE) -> FineTuned:
    return FineTuned(name="tiny", device="cpu", base=Pretrained(path=str(base)), recipe=recipe)


def found(spec: FineTuned, task: Glue) -> ResolvedCheckpoint:
    return spec.resolve(task, task.load)


def target(spec: FineTuned, task: Glue) -> Path:
    return spec.target(task, task.load(), spec.base.folder())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def learnable_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose sentence gives the label away."""
    folder = tmp_path_factory.mktemp("learnable")
    for split, count in (("train", 256), ("validation", 64)):
        frame = qnli_rows(count, seed=count)
        frame["sentence"] = ["cat dog" if label else "red blue" for label in frame["label"]]
        frame.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def headless(tiny_bert: Path, tmp_path: Path, make_model: MakeModel) -> Path:
    """An encoder without a head, as pretrained ones are."""
    folder = make_model(seed=1)
    tensors = {name: tensor for name, tensor in weights(folder).items() if not name.startswith("classifier")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_same_seed_gives_the_same_weights(
    headless: Path, learnable_glue: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, made = qnli(learnable_glue), []
    for number, seed in enumerate((0, 0, 1)):
        monkeypatch.setenv("QUANTLAB_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(100 + number)  # the caller's random state has no say, and is left alone
        before = torch.random.get_rng_state()
        spec = spec_of(headless, replace(RECIPE, seed=seed))
        made.append(weights(FineTuning(model=spec, task=task).run(SILENT)))
        assert torch.equal(before, torch.random.get_rng_state())
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_what_is_stored_is_found_and_answers_in_the_tasks_order(headless: Path, learnable_glue: Path) -> None:
    task, spec = qnli(learnable_glue), spec_of(headless)
    folder = FineTuning(model=spec, task=task).run(SILENT)
    assert folder == found(spec, task).folder
    loaded = spec.load(found(spec, task))
    assert loaded.tags["label_order"] == "matched"
    assert loaded.model.dtype == torch.float32
    card = json.loads((folder / "recipe.json").read_text())
    assert card["recipe"]["batch_size"] == 8
    assert card["fingerprints"]["train"] == task.load().train.fingerprint
    assert 0 <= card["evaluation"]["accuracy"] <= 1
    assert str(headless) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_what_is_there_is_not_trained_again(
    headless: Path, learnable_glue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FineTuning(model=spec_of(headless), task=qnli(learnable_glue)).run
    first = run(SILENT)
    monkeypatch.setattr(finetuning, "train", lambda *_: pytest.fail("trained again"))
    assert run(Console()) == first
    assert "already there" in capsys.readouterr().out


def test_a_run_that_dies_leaves_nothing(
    headless: Path, learnable_glue: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "write_card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    spec, task = spec_of(headless), qnli(learnable_glue)
    with pytest.raises(KeyboardInterrupt):
        FineTuning(model=spec, task=task).run(SILENT)
    assert not list((own_cache / "finetuned").iterdir())
    with pytest.raises(FileNotFoundError, match="not fine-tuned on qnli yet"):
        found(spec, task)


def test_everything_that_decides_the_weights_names_the_folder(
    headless: Path, tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    task, spec = qnli(tiny_glue), spec_of(headless)
    for split in ("train", "validation"):
        qnli_rows(16, seed=5).to_parquet(tmp_path / f"{split}.parquet")
    others = [
        target(spec_of(tiny_bert), task),
        target(spec_of(headless, replace(RECIPE, learning_rate=2e-3)), task),
        target(spec, qnli(tmp_path)),
        target(spec, replace(task, max_length=16)),
        target(spec, replace(task, labels=("yes", "no"))),
    ]
    assert len({target(spec, task), *others}) == 6
    assert target(replace(spec, device="auto"), task) == target(spec, task)


def test_it_learns(headless: Path, learnable_glue: Path) -> None:
    folder = FineTuning(model=spec_of(headless), task=qnli(learnable_glue)).run(SILENT)
    assert json.loads((folder / "recipe.json").read_text())["evaluation"]["accuracy"] == 1.0


def test_a_regression_trains_with_its_own_loss(headless: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        frame = pd.DataFrame(
            {"sentence1": ["the cat"] * 8, "sentence2": ["a dog"] * 8, "label": np.linspace(0, 5, 8)}
        )
        frame.to_parquet(tmp_path / f"{split}.parquet")
    task = Glue(
        name="stsb",
        config="stsb",
        text=("sentence1", "sentence2"),
        labels=(),
        metrics=("pearson", "spearmanr"),
        max_length=16,
        data_dir=str(tmp_path),
    )
    spec = spec_of(headless)
    card = json.loads((FineTuning(model=spec, task=task).run(SILENT) / "recipe.json").read_text())
    assert set(card["evaluation"]) == {"pearson", "spearmanr", "loss"}
    assert found(spec, task).tags["label_order"] == "regression"


def test_an_epoch_has_every_row_once_in_batches_of_like_length(tiny_bert: Path, tiny_glue: Path) -> None:
    tokenizer = read_tokenizer(tiny_bert)
    rows = qnli(tiny_glue).load().train.encode(tokenizer, 32)
    epochs = [list(training.shuffled_batches(rows, tokenizer, RECIPE, epoch)) for epoch in (0, 0, 1)]
    lengths = rows.lengths()
    for batches in epochs:
        found = sorted(
            int(length) for batch, _ in batches for length in batch.inputs["attention_mask"].sum(1)
        )
        assert found == sorted(lengths.tolist())
        padded = sum(batch.inputs["input_ids"].numel() for batch, _ in batches)
        assert padded < 1.15 * lengths.sum()
        assert sum(labels.sum() for _, labels in batches) == rows.labels.sum()
    first = [[batch.inputs["input_ids"].tolist() for batch, _ in batches] for batches in epochs]
    assert first[0] == first[1] != first[2]


def test_biases_and_norms_do_not_decay(tiny_bert: Path) -> None:
    model, _ = checkpoint.read_model(tiny_bert)
    decayed, kept = training.parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    still = {id(parameter) for parameter in kept["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in still}
    assert names == {
        name for name, _ in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name
    }


def test_a_diverging_loss_stops_the_training(headless: Path, tiny_glue: Path, own_cache: Path) -> None:
    spec = spec_of(headless, replace(RECIPE, learning_rate=1e30, bf16=False))
    with pytest.raises(FloatingPointError, match=r"at step \d of 12: lower the learning rate"):
        FineTuning(model=spec, task=qnli(tiny_glue)).run(SILENT)
    (left,) = (own_cache / "finetuned").iterdir()
    state = torch.load(left, weights_only=True)  # the last good one
    assert left.suffix == ".state"
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_training_that_answers_one_class_only_is_not_stored(
    headless: Path, tiny_glue: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = np.tile(np.float32([0.1, 0.2]), (64, 1))
    monkeypatch.setattr(finetuning, "evaluation_logits", lambda *_: constant)
    with pytest.raises(
        ValueError, match=r"'not_entailment' to 64 of 64.*nothing is stored.*lower model\.recipe"
    ):
        FineTuning(model=spec_of(headless), task=qnli(tiny_glue)).run(SILENT)
    assert not list((own_cache / "finetuned").iterdir())
    labels = np.repeat(np.int64([0, 1]), 32)
    finetuning.require_learnt(qnli(tiny_glue).labels, np.eye(2)[labels], labels)
    finetuning.require_learnt(
        qnli(tiny_glue), constant, np.ones(64, dtype=np.int64)
    )  # there is one class only


def test_an_encoder_with_holes_is_refused(headless: Path, tiny_glue: Path) -> None:
    tensors = weights(headless)
    del tensors["bert.encoder.layer.0.output.dense.weight"]
    save_file(tensors, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks bert\.encoder\.layer\.0\.output\.dense\.weight: the encoder is not whole"
    ):
        FineTuning(model=spec_of(headless), task=qnli(tiny_glue)).run(SILENT)


def test_a_checkpoint_is_not_trained(tiny_bert: Path, tiny_glue: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint already; train with model=minilm"):
        FineTuning(model=Checkpoint(path=str(tiny_bert)), task=qnli(tiny_glue)).run(SILENT)


def test_the_command_line_trains_what_the_trial_asks_for(
    headless: Path, learnable_glue: Path, python: Python, tmp_path: Path
) -> None:
    spec = replace(
        spec_of(headless), name="bert_base", recipe=Recipe(epochs=1, seed=3, batch_size=8, learning_rate=5e-3)
    )
    task = qnli(learnable_glue)
    with pytest.raises(FileNotFoundError) as missing:
        found(spec, task)
    command = str(missing.value).partition(": run python ")[2].partition(",")[0].split()
    command += [
        f"model.base.path={headless}",
        "recipe@model.recipe=quick",
        "model.recipe.seed=3",
        "model.recipe.batch_size=8",
    ]
    command += [
        "model.recipe.learning_rate=0.005",
        f"task.data_dir={learnable_glue}",
        f"task.max_length={task.max_length}",
    ]
    done = python.run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert found(spec, task).tags["label_order"] == "matched"
    assert not list(tmp_path.iterdir())
