"""Perplexity in windows: against a plain loop over transformers' own loss, and whole trials."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from decoders import decoder_folder, decoder_tokenizer, text
from labs import Lab
from transformers import AutoModelForCausalLM

from quantlab.evaluation.answering import predict
from quantlab.tasks.batching import by_length
from quantlab.tasks.examples import Texts
from quantlab.tasks.perplexity import Perplexity, cut
from quantlab.tasks.scores import SCORES

WINDOW = 16


def task(**settings: object) -> Perplexity:
    fields = {"name": "perplexity", "labels": (), "metrics": ("perplexity",), "window": WINDOW}
    return Perplexity(**fields | {"data": "x.txt"} | settings)  # type: ignore[arg-type]


def documents(*texts: str) -> Texts:
    return Texts(texts=tuple((each,) for each in texts), labels=np.zeros(len(texts), np.int64))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_folder(tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize("stride", [None, 5])
def test_perplexity_is_that_of_a_plain_loop(decoder: Path, stride: int | None) -> None:
    whole, tokenizer = documents(text(150), text(60, seed=1)), decoder_tokenizer()
    examples = task(stride=stride).units(whole, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(decoder).eval()
    batches = by_length(examples.encode(tokenizer, WINDOW), tokenizer, 4)
    values = predict(model, batches, (), "").logits

    ids = tokenizer("\n\n".join(each for (each,) in whole.texts), return_tensors="pt")["input_ids"]
    losses = []
    for start in range(0, ids.shape[1] - WINDOW + 1, stride or WINDOW):
        labels = ids[:, start : start + WINDOW].clone()
        if stride and start:
            labels[:, :-stride] = -100
        with torch.no_grad():
            loss = model(ids[:, start : start + WINDOW], labels=labels).loss.item()
        losses += [loss] * int((labels[:, 1:] != -100).sum())
    assert values[:, 1].sum() == len(losses)
    assert SCORES["perplexity"].total(values, examples.labels) == pytest.approx(
        math.exp(np.mean(losses)), rel=1e-5
    )


def test_words_are_those_that_begin_in_the_predicted_tokens() -> None:
    examples = task(window=4).units(documents("the cat , sat on\n\nthe mat.Then it"), decoder_tokenizer())
    assert [row.tolist() for row in examples.rows] == [[1, 3, 18, 5], [7, 1, 9, 17]]
    assert examples.predicted.tolist() == [[3, 3], [3, 2]]  # "mat.Then" is one word of three tokens


def test_documents_apart_are_clusters_and_short_ones_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    apart = task(documents="apart", window=4)
    whole = documents("the cat sat on the mat then it ran", "a dog", "a dog ran and")
    examples = apart.units(whole, decoder_tokenizer())
    assert examples.clusters is not None
    assert examples.clusters.tolist() == [0, 0, 2] and examples.take([2, 0]).clusters.tolist() == [2, 0]
    assert apart.unit_tags(whole, examples) == {"documents_dropped": "1 of 3"}
    assert caplog.messages == ["1 of 3 texts are shorter than task.window=4 and are left out"]
    assert task(window=4).unit_tags(whole, task(window=4).units(whole, decoder_tokenizer())) == {}


@pytest.mark.parametrize(
    "how, told",
    [("joined", "the text has only 5 tokens:"), ("apart", "each of the 2 texts has only 3 tokens")],
)
def test_texts_shorter_than_a_window_are_refused(how: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^task.window=16, but {told}.*take a longer text or a shorter"):
        task(documents=how).units(documents("the cat sat", "a dog"), decoder_tokenizer())


def test_cut_takes_whole_lines() -> None:
    assert cut(["ab\ncd\nef\n"], 0.3) == (["ab\n"], ["cd\nef\n"])
    assert cut(["ab", "cd\nef"], 0.4) == (["ab", "cd\n"], ["ef"])


@pytest.mark.skipif(find_spec("quantlab.network.families.llama") is None, reason="no sites of a Llama")
def test_a_trial_of_a_decoder(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(text(400))
    (tmp_path / "valid.tokens").write_text(text(200, seed=1))
    lab = Lab(
        (
            "model=hf",
            f"model.path={decoder}",
            "task=perplexity",
            f"task.data={tmp_path / 'test.txt'}",
            f"task.calibration={tmp_path / 'valid.tokens'}",
            "task.window=16",
            "evaluation.limit=12",
            "evaluation.order=file",
            "calibration.samples=8",
            "placement=gemm",
            "bits.weight_granularity=channel",
            "profile=off",
            "tracking=off",
            "model.device=cpu",
        )
    )
    result = lab.trial()
    metrics = result.metrics
    assert metrics["perplexity_ratio"] == pytest.approx(metrics["perplexity"] / metrics["perplexity_fp32"])
    low, high = (metrics[f"perplexity_ratio_ci95_{end}"] for end in ("low", "high"))
    assert low < metrics["perplexity_ratio"] < high
    result.save(tmp_path / "trial")
    answers = pd.read_parquet(tmp_path / "trial" / "answers.parquet")
    assert list(answers) == ["label", "nll", "tokens", "words", "fp32_nll", "fp32_tokens", "fp32_words"]
    assert len(answers) == 12 and (answers["tokens"] == 15).all()
