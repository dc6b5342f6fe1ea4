"""Answers in their order, and what they are worth."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from conftest import tokenizer
from tiny import FAMILIES, tiny_model, tokenized
from tokenizers.processors import TemplateProcessing

from quantlab.evaluation import answering as evaluation
from quantlab.evaluation.answering import Evaluation, largest_share, predict, score
from quantlab.evaluation.significance import accuracy_drop_ci95, metric_drop_ci95
from quantlab.tasks.batching import Tokenized, by_length, in_file_order
from quantlab.tasks.examples import Texts
from quantlab.tasks.task import Splits, Task

LENGTHS = (3, 12, 5, 5, 1, 12, 7, 2, 9, 4, 11)


@dataclass(frozen=True, kw_only=True)
class Plain(Task):
    """A task without data: its labels and metrics are what scores need."""

    def load(self) -> Splits:
        raise NotImplementedError


def task(*metrics: str, labels: tuple[str, ...] = ("no", "yes")) -> Plain:
    return Plain(name="plain", labels=labels, metrics=metrics)


def one_by_one(rows: Tokenized, family: str) -> np.ndarray:
    model = tiny_model(family)
    with torch.inference_mode():
        return np.stack(
            [
                model(**{name: torch.tensor([ids]) for name, ids in row.items()}).logits[0].numpy()
                for row in rows.rows
            ]
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 4, 32])
def test_batches_by_length_answer_in_order(family: str, size: int) -> None:
    rows = tokenized(LENGTHS)
    batches = by_length(rows, tokenizer(), size)
    answers = predict(tiny_model(family), batches, (0, 1), "answering")
    assert answers.logits.shape == (len(LENGTHS), 2)
    assert answers.logits.dtype == np.float32
    np.testing.assert_allclose(answers.logits, one_by_one(rows, family), rtol=1e-4, atol=1e-5)
    assert answers.seconds > 0


def test_a_tokenizer_that_pads_on_the_left_changes_nothing() -> None:
    left, rows = tokenizer(), tokenized(LENGTHS)
    left.padding_side = "left"
    for ours, theirs in zip(by_length(rows, tokenizer(), 4), by_length(rows, left, 4), strict=True):
        assert ours.inputs.keys() == theirs.inputs.keys()
        assert all(torch.equal(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs)


def test_columns_put_the_classes_into_the_tasks_order() -> None:
    batches = in_file_order(tokenized(LENGTHS), tokenizer(), 4, full_length=False)
    plain, swapped = (
        predict(tiny_model(), batches, columns, "answering").logits for columns in ((0, 1), (1, 0))
    )
    assert np.array_equal(swapped, plain[:, ::-1])
    assert not np.array_equal(swapped, plain)


def test_answering_again_gives_the_same_bits() -> None:
    batches = by_length(tokenized(LENGTHS), tokenizer(), 4)
    again = [predict(tiny_model(), batches, (0, 1), "answering").logits for _ in range(2)]
    assert np.array_equal(*again)


def test_batches_by_length() -> None:
    rows = tokenized(LENGTHS)
    batches = by_length(rows, tokenizer(), 4)
    lengths = [[LENGTHS[index] for index in batch.indices] for batch in batches]
    assert lengths == [[12, 12, 11, 9], [7, 5, 5, 4], [3, 2, 1]]
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(4, 12), (4, 7), (3, 3)]
    assert [len(batch) for batch in batches] == [4, 4, 3]
    for batch in batches:
        assert batch.inputs["attention_mask"].sum(1).tolist() == [LENGTHS[index] for index in batch.indices]
        for index, ids in zip(batch.indices, batch.inputs["input_ids"], strict=True):
            assert ids[: LENGTHS[index]].tolist() == rows.rows[index]["input_ids"]


def test_batches_in_file_order() -> None:
    batches = in_file_order(tokenized(LENGTHS), tokenizer(), 4, full_length=True)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert {batch.inputs["input_ids"].shape[1] for batch in batches} == {16}  # the task's length


def test_tokens_are_cut_to_the_tasks_length() -> None:
    texts = (("the cat is old", "is it"), ("cat " * 30, "dog"))
    rows = Texts(texts=texts, labels=np.array([0, 1])).encode(tokenizer(), max_length=10)
    assert rows.lengths().tolist() == [9, 10]  # with [CLS] and two [SEP]
    assert rows.rows[0]["token_type_ids"] == [0] * 6 + [1] * 3
    assert (rows.max_length, rows.labels.tolist()) == (10, [0, 1])


def test_tokenizing_a_few_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = Texts(texts=tuple(("cat " * n, "the dog") for n in range(1, 8)), labels=np.arange(7))
    whole = examples.encode(tokenizer(), max_length=10)
    monkeypatch.setattr("quantlab.tasks.batching.AT_ONCE", 3)
    assert examples.encode(tokenizer(), max_length=10).rows == whole.rows and len(whole) == 7


LABELS = np.array([0, 1, 1, 0, 1, 0, 1, 1])
REFERENCE = np.array(
    [[2, 1], [0, 1], [0, 3], [1, 2], [0, 1], [1, 0], [2, 1], [0, 1]], dtype=np.float32
)  # 6 right
LOGITS = np.array(
    [[1, 2], [0, 1], [3, 0], [2, 1], [0, 1], [1, 0], [2, 1], [1, 0]], dtype=np.float32
)  # 4 right


def test_an_example_without_a_token_is_named() -> None:
    """A tokenizer that adds no [CLS] and no [SEP] makes nothing of an empty pair."""
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    examples = Texts(texts=(("the cat", "a"), ("the", ""), ("", " ")), labels=np.zeros(3))
    assert len(examples.head(2).encode(bare, max_length=10)) == 2
    with pytest.raises(ValueError, match=r"makes no token of '' / ' ' \(example 2\).*post-processor"):
        examples.encode(bare, max_length=10)


def test_score() -> None:
    scores = score(task("accuracy", "f1"), LABELS, LOGITS, REFERENCE)
    low, high = accuracy_drop_ci95(REFERENCE.argmax(-1) == LABELS, LOGITS.argmax(-1) == LABELS)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(LABELS)).item()
    noise = ((REFERENCE - LOGITS) ** 2).sum()
    right, answers = (LOGITS.argmax(-1) == 1) & (LABELS == 1), LOGITS.argmax(-1)
    assert scores == pytest.approx(
        {
            "accuracy": 4 / 8,
            "f1": 2 * right.sum() / (answers.sum() + LABELS.sum()),
            "loss": loss,
            "accuracy_fp32": 6 / 8,
            "accuracy_drop": 2 / 8,
            "accuracy_drop_ci95_low": low,
            "accuracy_drop_ci95_high": high,
            "agreement_fp32": 4 / 8,
            "constant_prediction": 0,
            "logits_sqnr_db": 10 * math.log10((REFERENCE**2).sum() / noise),
        }
    )
    assert low < 0.25 < high


def test_score_of_the_reference_itself() -> None:
    scores = score(task("accuracy"), LABELS, REFERENCE, REFERENCE)
    assert (scores["accuracy_drop"], scores["agreement_fp32"], scores["logits_sqnr_db"]) == (0, 1, math.inf)
    assert scores["accuracy_drop_ci95_low"] == -scores["accuracy_drop_ci95_high"]


def test_score_by_another_primary_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluation, "metric_drop_ci95", partial(metric_drop_ci95, resamples=99)
    )  # a tenth, for time
    scores = score(task("f1", "accuracy"), LABELS, LOGITS, REFERENCE)
    assert scores["f1_drop"] == scores["f1_fp32"] - scores["f1"] != 0
    assert scores["f1_drop_ci95_low"] <= scores["f1_drop"] <= scores["f1_drop_ci95_high"]
    assert "accuracy_drop" not in scores


def test_score_of_a_regression() -> None:
    labels = np.linspace(0, 5, 20, dtype=np.float32)
    reference, logits = labels[:, None] + 0.5, labels[:, None] ** 2
    scores = score(task("pearson", "spearmanr", labels=()), labels, logits, reference)
    assert scores["pearson_fp32"] == pytest.approx(1)
    assert scores["pearson"] == pytest.approx(np.corrcoef(labels, labels**2)[0, 1])
    assert scores["spearmanr"] == pytest.approx(1)
    assert scores["loss"] == pytest.approx(np.mean((labels**2 - labels) ** 2))
    assert "agreement_fp32" not in scores
    assert "constant_prediction" not in scores


def test_too_few_answers_for_an_interval() -> None:
    scores = score(task("f1"), LABELS[:2], LOGITS[:2], REFERENCE[:2])
    assert math.isnan(scores["f1_drop_ci95_low"])
    assert math.isnan(scores["f1_drop_ci95_high"])


@pytest.mark.parametrize("ones, constant", [(100, 1), (98, 1), (97, 0), (3, 0), (2, 1), (0, 1)])
def test_constant_prediction(ones: int, constant: int) -> None:
    labels = np.arange(100) % 2
    logits = np.stack([np.zeros(100), np.where(np.arange(100) < ones, 1.0, -1.0)], axis=1).astype(np.float32)
    assert score(task("accuracy"), labels, logits, logits)["constant_prediction"] == constant
    assert largest_share(logits.argmax(-1)) == max(ones, 100 - ones) / 100


def test_answers_that_are_no_numbers() -> None:
    broken = LOGITS.copy()
    broken[3, 0] = np.nan
    with pytest.raises(ValueError, match="the logits of 1 of 8 examples are NaN or infinite"):
        score(task("accuracy"), LABELS, broken, REFERENCE)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"limit": 0}, "evaluation.limit must be a whole number of at least 1, got 0"),
        ({"limit": "all"}, "evaluation.limit must be a whole number of at least 1, got 'all'"),
        ({"order": "shuffled"}, "evaluation.order must be one of random, file; got 'shuffled'"),
        ({"seed": -1}, "evaluation.seed must be a whole number of at least 0, got -1"),
        ({"holdout": 1}, r"evaluation.holdout must be a share in \[0, 1\), got 1"),
        ({"batch_size": 0}, "evaluation.batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_settings(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluation(**fields)
