"""Tokenizers, tasks and weights that do not fit the model are refused or tagged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import load, task_of, tokenizer_of
from conftest import MakeModel
from transformers import BertModel

from quantlab.network import checkpoint
from quantlab.network.compatibility import check_token_types
from quantlab.network.models import Checkpoint
from quantlab.tasks.examples import Texts


def test_a_checkpoint_without_a_head_is_refused(copy: Path) -> None:
    with checkpoint.quiet():
        BertModel.from_pretrained(copy).save_pretrained(copy)
    with pytest.raises(ValueError, match=r"lacks classifier\.bias, classifier\.weight.*quantlab\.finetune"):
        load(copy)


def test_a_tokenizer_or_task_too_large_for_the_model_is_refused(
    make_model: MakeModel, tiny_bert: Path
) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 20 tokens, the model only 10"):
        load(make_model(vocab_size=10))
    with pytest.raises(ValueError, match=r"max_length=128.*at most 64 tokens"):
        load(tiny_bert, task_of(max_length=128))


@pytest.mark.parametrize(
    ("family", "pad", "most"),
    [
        ("bert", 0, 66),
        ("bert", 3, 66),
        ("distilbert", 0, 66),
        ("electra", 0, 66),
        ("roberta", 0, 65),
        ("roberta", 1, 64),
        ("roberta", 3, 62),
    ],
)
def test_positions_begin_behind_paddings(
    make_model: MakeModel, tmp_path: Path, family: str, pad: int, most: int
) -> None:
    """The limit that is allowed is the longest that the model answers."""
    folder = Path(shutil.copytree(make_model(family, pad_token_id=pad), tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": 10**30}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"max_length={most + 1}, but the model takes at most {most} tokens"):
        load(folder, task_of(max_length=most + 1))
    model, rows = load(folder, task_of(max_length=most)).model, torch.full((2, most + 1), 6)
    assert torch.isfinite(model(input_ids=rows[:, :-1]).logits).all()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=rows)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_pair_needs_two_token_types(make_model: MakeModel, family: str) -> None:
    found = Checkpoint(path=str(make_model(family, type_vocab_size=1))).resolve(task_of(), task_of().load)
    single, pair = (
        Texts(texts=(texts,), labels=np.zeros(1)).encode(found.processor, 32)
        for texts in (("the cat",), ("the cat", "a dog"))
    )
    check_token_types(single, found.skeleton, found.folder)
    with pytest.raises(ValueError, match=r"token type 1, but the model has type_vocab_size=1"):
        check_token_types(pair, found.skeleton, found.folder)


@pytest.mark.parametrize(
    ("words", "lowers", "message"),
    [
        (
            ("The", "the", "Cat", "cat", "##Ing"),
            True,
            "lower-cases texts, but 3 of 5 words of its",
        ),
        (("the", "cat"), False, "keeps capitals, but none of 2 words of its vocabulary has one"),
        (("The", "the", "Cat"), False, None),
        (("the", "cat"), True, None),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_vocabulary_is_tagged(
    copy: Path, words: tuple, lowers: bool, message: str | None
) -> None:
    tokenizer_of(copy, words, do_lower_case=lowers)
    tags = load(copy).tags
    assert (message is None) == ("tokenizer_mismatch" not in tags)
    assert message is None or message in tags["tokenizer_mismatch"]


def test_another_id_of_padding_is_tagged(make_model: MakeModel) -> None:
    tags = load(make_model("roberta", pad_token_id=1)).tags
    assert "pads with id 0, the model takes 1 ([UNK]) for padding" in tags["tokenizer_mismatch"]
