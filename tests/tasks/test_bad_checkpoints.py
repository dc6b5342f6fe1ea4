"""Checkpoints that do not fit the kind of task: one clear line, before weights are used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeModel
from decoders import decoder_folder
from pictures import vit_folder, write_classes

from quantlab.network.models import Checkpoint
from quantlab.tasks.images import ImageClassification
from quantlab.tasks.perplexity import Perplexity
from quantlab.tasks.task import Task
from quantlab.tasks.text import TextClassification

Make = Callable[[Path], Path]


@pytest.fixture
def texts(tmp_path: Path) -> Task:
    (tmp_path / "rows.csv").write_text("text,label\n" + "the cat,in\na dog,out\n" * 4)
    fields = {"labels": (), "metrics": ("accuracy",), "max_length": 16, "text": ("text",), "label": "label"}
    return TextClassification(name="places", data=str(tmp_path / "rows.csv"), **fields)  # type: ignore[arg-type]


@pytest.fixture
def images(tmp_path: Path) -> Task:
    fields = {"labels": (), "metrics": ("accuracy",), "label": "label"}
    data = write_classes(tmp_path / "classes", 4)
    return ImageClassification(name="pets", data=str(data), **fields)  # type: ignore[arg-type]


def windows(folder: Path, window: int = 8) -> Task:
    (folder / "text.txt").write_text("the cat sat on the mat\n" * 20)
    fields = {"name": "perplexity", "labels": (), "metrics": ("perplexity",), "window": window}
    return Perplexity(**fields, data=str(folder / "text.txt"))  # type: ignore[arg-type]


def refused(folder: Path, task: Task) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        Checkpoint(path=str(folder), device="cpu").resolve(task, task.load)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(folder: Path, file: str, **keys: object) -> Path:
    content = json.loads((folder / file).read_text()) | keys
    kept = {name: value for name, value in content.items() if value is not None}
    (folder / file).write_text(json.dumps(kept))
    return folder


def test_a_decoder_does_not_classify_and_the_other_way_round(
    texts: Task, images: Task, make_model: MakeModel, tmp_path: Path
) -> None:
    decoder, vit = decoder_folder(tmp_path / "llama"), vit_folder(tmp_path / "vit", 2)
    assert refused(decoder, texts).endswith(
        "LlamaForCausalLM answers next tokens, and task places asks for classes of texts; quantlab finetune "
        "trains a head on it"
    )
    assert refused(make_model(), windows(tmp_path)).endswith(
        "BertForSequenceClassification answers classes of texts, and task perplexity asks for next tokens"
    )
    assert "llama cannot answer classes of images, which task pets asks for" in refused(decoder, images)
    assert "vit cannot answer classes of texts, which task places asks for" in refused(vit, texts)
    assert "vit cannot answer next tokens" in refused(vit, windows(tmp_path))


def test_an_encoder_that_fills_gaps_is_no_decoder(make_model: MakeModel, tmp_path: Path) -> None:
    folder = edited(make_model(seed=7), "config.json", architectures=["BertForMaskedLM"])
    assert "BertForMaskedLM is no decoder, and task perplexity" in refused(folder, windows(tmp_path))


def test_a_window_longer_than_the_positions(tmp_path: Path) -> None:
    message = refused(decoder_folder(tmp_path / "llama"), windows(tmp_path, window=65))
    assert message == "task.window=65, but the model takes at most 64 tokens"


def test_classes_of_texts_need_a_pad_token_and_windows_need_none(texts: Task, tmp_path: Path) -> None:
    folder = edited(decoder_folder(tmp_path / "llama"), "tokenizer_config.json", pad_token=None)
    task = windows(tmp_path)
    assert Checkpoint(path=str(folder), device="cpu").resolve(task, task.load).processor.pad_token is None
    edited(folder, "config.json", architectures=["LlamaForSequenceClassification"], num_labels=2)
    edited(folder, "config.json", id2label={"0": "in", "1": "out"}, label2id={"in": 0, "out": 1})
    assert "the tokenizer has no pad token: name it as pad_token in" in refused(folder, texts)


def test_a_processor_that_is_missing_or_makes_other_sizes(images: Task, tmp_path: Path) -> None:
    folder = vit_folder(tmp_path / "vit", 2)
    edited(folder, "config.json", id2label={"0": "cat", "1": "dog"}, label2id={"cat": 0, "dog": 1})
    processor = folder / "preprocessor_config.json"
    edited(folder, processor.name, size={"height": 16, "width": 16})
    assert "makes images of 16 x 16 pixels, the model takes 8 x 8" in refused(folder, images)
    edited(folder, processor.name, size={"shortest_edge": 8})
    assert "images of several sizes" in refused(folder, images)
    processor.unlink()
    assert refused(folder, images).endswith(
        "holds no preprocessor_config.json: how images are scaled and normalized is not known"
    )
