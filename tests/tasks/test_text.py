"""One's own texts: every kind of file gives the same rows, and messages point at what is wrong."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import MakeModel, qnli_rows
from labs import Lab

from quantlab.tasks.hub import unreachable
from quantlab.tasks.task import Splits
from quantlab.tasks.text import TextClassification

ODD = ['He said "no"', "a, b; c", "two\nlines", "007", "null", "  blanks ", "naïve — 日本語", "True"]
WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "json": lambda frame, path: frame.to_json(path, orient="records"),
    "parquet": lambda frame, path: frame.to_parquet(path),
}


def task_of(data: object, **settings: Any) -> TextClassification:
    fields = {"text": ("question", "sentence"), "label": "label", "labels": (), "metrics": ("accuracy", "f1")}
    return TextClassification(name="mine", data=str(data), **(fields | settings))


def rows_in(splits: Splits) -> list[tuple[tuple[str, ...], int]]:
    both = (splits.train, splits.evaluation)
    return sorted(row for part in both for row in zip(part.texts, part.labels.tolist(), strict=True))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("labels", [["no", "yes"] * 4, [0, 1] * 4, [False, True] * 4], ids=type)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, labels: list) -> None:
    frame = pd.DataFrame({"question": ODD, "sentence": ODD[::-1], "label": labels})
    WRITERS[kind](frame, tmp_path / f"mine.{kind}")
    read = task_of(tmp_path / f"mine.{kind}", evaluation_share=0.25).load()
    assert rows_in(read) == sorted(zip(zip(ODD, ODD[::-1], strict=True), [0, 1] * 4, strict=True))
    assert [name.lower() for name in read.classes] == [str(label).lower() for label in labels[:2]]
    assert len(read.evaluation) == 2


def test_semicolons_separate_where_the_header_has_no_comma(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text('﻿sentence;label\r\n"a; b, c";good\r\nd, e;bad\r\n', encoding="utf-8")
    read = task_of(path, text="sentence").load()
    assert rows_in(read) == [(("a; b, c",), 1), (("d, e",), 0)]


@pytest.mark.parametrize("rows", [10, 101, 1000])
def test_one_file_is_split_with_a_seed_and_every_class_in_its_share(tmp_path: Path, rows: int) -> None:
    frame = qnli_rows(rows).assign(sentence=[f"text {row}" for row in range(rows)])
    frame.to_parquet(tmp_path / "mine.parquet")
    first, again = (task_of(tmp_path / "mine.parquet").load() for _ in range(2))
    other = task_of(tmp_path / "mine.parquet", split_seed=1).load()
    assert first.evaluation.fingerprint == again.evaluation.fingerprint != other.evaluation.fingerprint
    assert not set(first.train.texts) & set(first.evaluation.texts)
    assert len(first.evaluation) == round(0.2 * rows)
    assert len(first.train) + len(first.evaluation) == rows
    assert abs(first.evaluation.labels.sum() - 0.1 * rows) <= 1
    assert first.tags == {
        "splits": f"evaluation: {round(0.2 * rows):,} of {rows:,} rows of {tmp_path}/mine.parquet, drawn "
        "with seed 0; train: the others",
        "classes": "0, 1",
    }


def test_rows_with_equal_texts_are_in_one_split(tmp_path: Path) -> None:
    texts = [f"text {row % 30}" for row in range(90)]
    frame = pd.DataFrame({"sentence": texts, "label": ["a", "b", "c"] * 30})
    frame.to_csv(tmp_path / "mine.csv", index=False)
    read = task_of(tmp_path / "mine.csv", text="sentence").load()
    assert not set(read.train.texts) & set(read.evaluation.texts)
    assert len(read.evaluation) == 18


@pytest.mark.parametrize(
    ("names", "settings", "chosen"),
    [
        (("train.csv", "validation.csv", "test.csv"), {}, ("train.csv", "validation.csv")),
        (("train.csv", "dev.csv"), {}, ("train.csv", "dev.csv")),
        (("train.csv", "test.csv"), {}, ("train.csv", "test.csv")),
        (
            ("train.csv", "validation.csv", "test.csv"),
            {"evaluation_split": "test"},
            ("train.csv", "test.csv"),
        ),
        (
            ("old.csv", "new.csv"),
            {"train_split": "old", "evaluation_split": "new"},
            ("old.csv", "new.csv"),
        ),
        (
            ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
            {},
            ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ),
    ],
)
def test_a_folder_s_files_are_its_splits(
    tmp_path: Path, names: tuple[str, ...], settings: dict, chosen: tuple[str, str]
) -> None:
    for name in names:
        frame = pd.DataFrame({"sentence": [name, f"{name} 2"], "label": ["a", "b"]})
        WRITERS[name.rpartition(".")[2]](frame, tmp_path / name)
    read = task_of(tmp_path, text="sentence", **settings).load()
    assert (read.train.texts[0], read.evaluation.texts[0]) == ((chosen[0],), (chosen[1],))
    assert read.tags["splits"] == f"{tmp_path / chosen[0]} and {tmp_path / chosen[1]}"


def test_a_folder_of_one_file_is_split(tmp_path: Path) -> None:
    qnli_rows(20).to_csv(tmp_path / "train.csv", index=False)
    assert len(task_of(tmp_path).load().evaluation) == 4


def test_class_names_that_a_parquet_file_records_are_the_labels(tmp_path: Path) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "y", "x"])}
    )
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    rows.to_parquet(tmp_path / "mine.parquet")
    read = task_of(tmp_path / "mine.parquet", text="sentence").load()
    assert list(read.classes) == ["z", "y", "x"]
    assert rows_in(read) == [(("a",), 1), (("b",), 0)]


def test_the_hub_s_splits_and_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    splits = datasets.DatasetDict({"train": rows, "test": rows, "unsupervised": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    read = task_of("owner/reviews", text="sentence").load()
    assert read.tags == {"splits": "owner/reviews/train and owner/reviews/test", "classes": "neg, pos"}
    assert read.evaluation.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "given", "indices"),
    [
        (["good", "bad", "good"], ("good", "bad"), [0, 1, 0]),
        ([1, 0, 1], ("bad", "good"), [1, 0, 1]),
        ([True, False, True], ("bad", "good"), [1, 0, 1]),
        ([5, 1, 3], (1, 3, 5), [2, 0, 1]),  # names that are numbers are no indices
        ([-1, 1, -1], (), [0, 1, 0]),
        ([10, 9, 10], (), [1, 0, 1]),  # sorted as numbers
        (["good ", "bad", "good"], (), [1, 0, 1]),
    ],
)
def test_labels_are_names_or_indices(tmp_path: Path, labels: list, given: tuple, indices: list[int]) -> None:
    for split in ("train", "test"):
        pd.DataFrame({"sentence": ["a", "b", "c"], "label": labels}).to_json(
            tmp_path / f"{split}.jsonl", orient="records", lines=True
        )
    read = task_of(tmp_path, text="sentence", labels=given).load()
    assert read.train.labels.tolist() == indices
    assert read.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("a", "x")], {"text": "sentense"}, r"jsonl: no column 'sentense'; found \['sentence', 'label'\]"),
        ([("a", "x")], {"label": "lable"}, r"no column 'lable'.*did you mean 'label'"),
        ([("a", "x"), (" ", "y")], {}, r"column 'sentence', line 2: the text is empty, as in 1 of 2 rows"),
        ([("a", "x"), (7, "y")], {}, r"mine\.jsonl: column 'sentence', line 2 holds 7, which is no text"),
        ([("a", "x"), (None, "y")], {}, r"column 'sentence', line 2 holds nothing"),
        ([("a", "x"), ("b", None)], {}, r"column 'label', line 2: label 'nan' means that there is none"),
        ([("a", "x"), ("b", "")], {}, r"column 'label', line 2: label '' means that there is none"),
        ([("a", 1), ("b", 0.5)], {}, r"column 'label', line 2: label 0.5 names no class: texts, whole"),
        ([("a", [1]), ("b", [0])], {}, r"line 1: label \[1\] names no class"),
        ([("a", -1), ("b", -1)], {}, r"one label only, '-1', which marks the hidden labels of a test set"),
        ([("a", "x"), ("b", "x")], {}, r"column 'label' holds one label only, 'x'"),
        ([(f"{i}", i) for i in range(9)], {}, r"9 different labels in 9 rows: it does not name classes"),
        ([("a", "x"), ("b", "yy")], {"labels": ("x", "yyy")}, r"unknown label 'yy' \(did you mean 'yyy'\?\)"),
        ([("a", 5), ("b", 6)], {"labels": (4, 5)}, r"line 2: unknown label '6'; allowed are 4, 5$"),
        ([("a", "x"), ("a", "y")], {}, "2 rows with the same texts cannot be split"),
        (
            [("a", "x")],
            {"evaluation_split": "tset"},
            r"task\.evaluation_split=tset is for data in several splits",
        ),
        ([("a", "x")], {"config": "plain"}, r"task\.config=plain is for data sets of the hub"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, rows: list, settings: dict, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"sentence": text, "label": label}) + "\n" for text, label in rows))
    with pytest.raises(ValueError, match=message) as caught:
        task_of(path, **({"text": "sentence"} | settings)).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence,label\na,x\nb\n", "line 3 has 1 fields, the header names 2"),
        ('sentence,label\n"a\nb",x\n"c,y\n', "unexpected end of data"),
        ('sentence,label\n"a\nb",x\nc,d,y\n', "line 4 has 3 fields"),
        ("sentence,label\n", "holds no rows"),
        ("", "is empty"),
        ("sentence,label,label\na,x,y\n", "2 columns are called 'label'"),
    ],
)
def test_a_broken_csv_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"mine\.csv.*{message}"):
        task_of(tmp_path / "mine.csv", text="sentence").load()


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        (
            ("reviews.csv",),
            "reviews.cvs",
            r"path of a file or folder as task\.data: \S*reviews\.cvs is none \(did you mean 'reviews\.csv'",
        ),
        ((), "mine.csv", "mine.csv is no file and no folder here"),
        (
            ("reviews.xlsx",),
            "reviews.xlsx",
            r"reviews\.xlsx is none of the files that are read: \.parquet, \.csv",
        ),
        (("README.md",), ".", r"has no \.parquet, .* file; it holds README\.md"),
        (
            ("train.csv", "more.csv"),
            ".",
            "has no split validation or valid or val or dev or test.*one of more, train",
        ),
        (("dev.csv", "test.csv"), ".", "has no split train or training: give task.train_split"),
        (("train.csv", "train.json", "dev.csv"), ".", "train.csv and train.json for the same split"),
    ],
)
def test_files_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], data: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).write_text("sentence,label\na,x\n")
    with pytest.raises((ValueError, OSError), match=message):
        task_of(data, text="sentence").load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": ("a", "b", "c")}, "task.text must name one or two columns"),
        ({"text": ("a", "a")}, "task.text must name one or two columns"),
        ({"text": ("a", "label")}, "task.label=label is a column of task.text, too"),
        ({"evaluation_share": 0}, "task.evaluation_share must be between 0 and 1, got 0"),
        ({"split_seed": -1}, "task.split_seed must be a whole number of at least 0"),
        ({"labels": (True, False)}, "labels must be texts, got True: quote it"),
        ({"metrics": ("pearson",)}, "metrics must be one of accuracy, f1"),
    ],
)
def test_settings_are_checked_before_data_is_read(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of("nowhere.csv", **settings)


def test_a_silent_hub_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    def unheard(*_: object, timeout: float, **__: object) -> None:
        assert timeout <= 10
        raise HTTPError("no such host")

    monkeypatch.setattr(HfApi, "dataset_info", unheard)
    assert "does not answer: no such host" in unreachable("owner/reviews", None)
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(
        OSError, match=r"owner/reviews cannot be loaded.*no such host.*give the path of a file or folder"
    ):
        task_of("owner/reviews").load()
    assert before == datasets.config.HF_HUB_OFFLINE


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel) -> tuple[Path, Lab]:
    folder = tmp_path_factory.mktemp("mine")
    names = ["entailment", "not_entailment"]
    for split, count in (("train", 96), ("validation", 64)):
        frame = qnli_rows(count, seed=count)
        frame.to_parquet(folder / f"{split}.parquet")
        frame = frame.assign(label=[names[label] for label in frame["label"]])
        frame.to_csv(folder.parent / f"{folder.name}-csv-{split}.csv", index=False)
    overrides = (
        f"model.path={make_model()}",
        "model=hf",
        "profile=off",
        "tracking=off",
        "task.max_length=32",
    )
    return folder, Lab(overrides)


def test_a_trial_on_ones_own_text_answers_as_glue_s_to_the_bit(lab: tuple[Path, Lab], tmp_path: Path) -> None:
    folder, tiny = lab
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").symlink_to(folder.parent / f"{folder.name}-csv-{split}.csv")
    glue = tiny.trial("task=qnli", f"task.data_dir={folder}")
    own = tiny.trial("task=text", f"task.data={tmp_path}", "task.text=[question,sentence]")
    assert np.array_equal(own.logits, glue.logits) and np.array_equal(own.labels, glue.labels)
    assert own.tags["data_fingerprint"] == glue.tags["data_fingerprint"]
    assert own.tags["classes"] == "entailment, not_entailment" and "f1" in own.metrics


def test_the_examples_of_the_documentation_run(lab: tuple[Path, Lab], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    lines = page.replace("\\\n", "").splitlines()
    commands = [shlex.split(line) for line in lines if "-m quantlab.run" in line and "task=text" in line]
    rows = pd.concat([qnli_rows(100, seed=seed) for seed in (0, 1)])
    rows = rows.assign(answer=rows["label"].map({0: "Entailment", 1: "not entailment"}))
    rows[["sentence", "label"]].to_csv(tmp_path / "reviews.csv", index=False)
    rows[["question", "sentence", "answer"]].to_parquet(tmp_path / "pairs.parquet")
    assert len(commands) == 2
    for words in commands:
        given = [word for word in words if word.startswith("task")]
        result = lab[1].trial(*(word.replace("data=", f"data={tmp_path}/") for word in given))
        assert result.tags["splits"].startswith("evaluation: ") and len(result.labels) >= 30
