"""Training of what is no BERT: a vision transformer, a decoder with classes, GPT-2 with its Conv1D."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from decoders import WORDS, decoder_folder, decoder_tokenizer
from pictures import vit_folder
from PIL import Image
from rich.console import Console
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from quantlab.evaluation.answering import predict
from quantlab.network.checkpoint_sources import Pretrained
from quantlab.network.models import FineTuned, Recipe
from quantlab.tasks.batching import by_length
from quantlab.tasks.images import ImageClassification
from quantlab.tasks.perplexity import Perplexity
from quantlab.tasks.task import Task
from quantlab.tasks.text import TextClassification
from quantlab.training import finetuning
from quantlab.training.finetuning import FineTuning

RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=1e-2, bf16=False)


def gpt2_folder(folder: Path) -> Path:
    config = GPT2Config(vocab_size=len(WORDS) + 1, n_positions=64, n_embd=32, n_layer=1, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(folder)
    decoder_tokenizer().save_pretrained(folder)
    return folder


def texts(folder: Path) -> TextClassification:
    """Rows that one word gives away."""
    rows = [("the cat sat on the mat", "indoors"), ("a dog ran under the tree then", "outdoors")] * 32
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "rows.csv", index=False)
    for split, count in (("train", 48), ("test", 16)):
        pd.DataFrame(rows[:count], columns=["text", "label"]).to_csv(folder / f"{split}.csv", index=False)
    (folder / "rows.csv").unlink()
    fields = {"labels": (), "metrics": ("accuracy",), "max_length": 16, "text": ("text",), "label": "label"}
    return TextClassification(name="places", data=str(folder), **fields)  # type: ignore[arg-type]


def pictures(folder: Path) -> ImageClassification:
    """Dark and bright pictures."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for name, lightest in (("dark", 90), ("light", 250)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                file = BytesIO()
                pixels = random.integers(lightest - 90, lightest, (10, 12, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(file, "png")
                (folder / split / name / f"{number}.png").write_bytes(file.getvalue())
    fields = {"labels": (), "metrics": ("accuracy",), "label": "label"}
    return ImageClassification(name="light", data=str(folder), **fields)  # type: ignore[arg-type]


def spec_of(base: Path) -> FineTuned:
    return FineTuned(name="tiny", device="cpu", base=Pretrained(path=str(base)), recipe=RECIPE)


@pytest.mark.parametrize("family", ["vit", "llama", "gpt2"])
def test_what_is_trained_is_read_back_and_answers_as_it_did(
    family: str, own_cache: Path, tmp_path: Path
) -> None:
    base, data = tmp_path / "base", tmp_path / "data"
    data.mkdir()
    task: Task = pictures(data) if family == "vit" else texts(data)
    # The vision transformer has a head for other classes.
    makers = {"vit": lambda folder: vit_folder(folder, 3), "llama": decoder_folder, "gpt2": gpt2_folder}
    spec = spec_of(makers[family](base))
    folder = FineTuning(model=spec, task=task).run(Console(quiet=True))
    card = json.loads((folder / "recipe.json").read_text())
    assert card["evaluation"]["accuracy"] == 1

    found = spec.resolve(task, task.load)
    loaded, rows = spec.load(found), task.load().evaluation
    batches = by_length(rows.encode(found.processor, task.max_length), found.processor, 4)
    answers = predict(loaded.model, batches, loaded.label_columns, "").logits.argmax(-1)
    assert loaded.tags["label_order"] == "matched" and (answers == rows.labels).all()
    if family == "gpt2":
        assert isinstance(loaded.model.transformer.h[0].mlp.c_fc, nn.Linear)


def test_a_broken_picture_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = pictures(tmp_path / "data")
    (tmp_path / "data" / "test" / "dark" / "0.png").write_bytes(b"no picture")
    monkeypatch.setattr(finetuning, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="the picture cannot be read"):
        FineTuning(model=spec_of(vit_folder(tmp_path / "base", 2)), task=task).run(Console(quiet=True))


def test_next_tokens_are_not_trained(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat\n" * 20)
    fields = {"name": "perplexity", "labels": (), "metrics": ("perplexity",), "window": 8}
    task = Perplexity(**fields, data=str(tmp_path / "text.txt"))  # type: ignore[arg-type]
    spec, message = spec_of(decoder_folder(tmp_path / "base")), "a decoder answers it as it is"
    with pytest.raises(ValueError, match=message):
        FineTuning(model=spec, task=task).run(Console(quiet=True))
    with pytest.raises(ValueError, match=message):  # not: run quantlab.finetune
        spec.folder(task, task.load)
