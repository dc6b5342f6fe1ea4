"""The last word of passages: its tokens, against the network's own, one by one and without padding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import WORDS, decoder_folder, decoder_tokenizer
from transformers import AutoModelForCausalLM

from quantlab.evaluation.answering import predict
from quantlab.tasks.batching import by_length
from quantlab.tasks.examples import Texts
from quantlab.tasks.last_word import LastWord
from quantlab.tasks.scores import SCORES


def task(data: str = "x.jsonl", **settings: object) -> LastWord:
    fields = {"name": "last_word", "labels": (), "metrics": ("last_word_accuracy",), "data": data}
    return LastWord(**fields | settings)  # type: ignore[arg-type]


def passages(*texts: str) -> Texts:
    return Texts(texts=tuple((each,) for each in texts), labels=np.zeros(len(texts), np.int64))


def test_answers_are_those_without_padding(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(decoder_folder(tmp_path)).eval()
    tokenizer, texts = decoder_tokenizer(), ["the cat sat on the mat", "a dog ran", "then it was old.red"]
    with torch.no_grad():  # the first passage ends with the word that the network finds likeliest
        start = tokenizer("the cat sat on the", return_tensors="pt")
        likeliest = int(model(**start).logits[0, -1, 1:].argmax())
    texts[0] = f"the cat sat on the {WORDS[likeliest]}"
    examples = task().units(passages(*texts), tokenizer)
    values = predict(model, by_length(examples.encode(tokenizer, 64), tokenizer, 3), (), "").logits
    for text, (nll, right), (count,) in zip(texts, values, examples.predicted, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        expected = [
            float(logp[place - 1, ids[0, place]]) for place in range(ids.shape[1] - count, ids.shape[1])
        ]
        assert nll == pytest.approx(-sum(expected), rel=1e-5)
        found = logp[-count - 1 : -1].argmax(-1) == ids[0, -count:]
        assert right == float(found.all())
    assert examples.predicted.T.tolist() == [[1, 1, 3]] and values[0, 1] == 1
    share = values[:, 1].mean()
    assert SCORES["last_word_accuracy"].total(values, examples.labels) == share
    assert SCORES["last_word_perplexity"].total(values, examples.labels) == np.exp(values[:, 0].mean())


def test_a_passage_of_one_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"passage 1 has no last word after others: 'cat'"):
        task().units(passages("the cat", "cat"), decoder_tokenizer())


@pytest.mark.parametrize("name", ["test.jsonl", "test.txt"])
def test_the_first_passages_calibrate(name: str, tmp_path: Path) -> None:
    passages = [f"the cat {index}" for index in range(10)]
    lines = passages if name == "test.txt" else [f'{{"text": "{passage}"}}' for passage in passages]
    (tmp_path / name).write_text("\n".join([*lines, ""]))
    splits = task(str(tmp_path / name)).load()
    assert isinstance(splits.train, Texts) and splits.train.texts == (("the cat 0",), ("the cat 1",))
    assert len(splits.evaluation) == 8
