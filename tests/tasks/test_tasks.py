"""GLUE from files and from the hub, its metrics, and what is said about data that is wrong."""

import math
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import qnli_rows
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import f1_score, matthews_corrcoef

from quantlab.cli.conf_dir import CONF
from quantlab.tasks import scores as metrics
from quantlab.tasks.examples import Texts
from quantlab.tasks.glue import CONFIGS, Glue
from quantlab.tasks.scores import Kind
from quantlab.tasks.task import Task

TEXTS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
}


def configured(name: str, **settings: object) -> Task:
    """A task as the command line builds it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        overrides = [f"+task={name}", *(f"task.{key}={value}" for key, value in settings.items())]
        return instantiate(compose(overrides=overrides).task, _convert_="all")


def qnli(folder: Path) -> Glue:
    return Glue(
        name="qnli",
        config="qnli",
        text=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        data_dir=str(folder),
    )


def write(frame: pd.DataFrame, path: Path) -> None:
    """Writes the frame as its suffix says."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        lines = ["\t".join(map(str, row)) for row in (frame.columns, *frame.itertuples(index=False))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def folder_with(tmp_path: Path, frame: pd.DataFrame, suffix: str = "parquet") -> Path:
    for split in ("train", "validation"):
        write(frame, tmp_path / f"{split}.{suffix}")
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_every_task_reads_its_own_columns(name: str, tmp_path: Path) -> None:
    labels = [0.0, 2.5, 5.0] if name == "stsb" else [0, 1, 1]
    frame = pd.DataFrame({column: [f"{column} {row}" for row in range(3)] for column in TEXTS[name]})
    task = configured(name, data_dir=folder_with(tmp_path, frame.assign(label=labels)))
    evaluation = task.load().evaluation
    assert evaluation.texts[2] == tuple(f"{column} 2" for column in TEXTS[name])
    assert evaluation.labels.tolist() == labels
    assert evaluation.labels.dtype == (np.float32 if name == "stsb" else np.int64)
    assert len(task.classes(task.load())) == {"stsb": 0, "mnli": 3}.get(name, 2)


def test_first_metrics_are_glues() -> None:
    """Table 1 of the GLUE paper (arXiv 1804.07461): accuracy, for CoLA Matthews' correlation, for STS-B
    Pearson's."""
    found = {name: configured(name).metrics for name in CONFIGS}
    both = dict.fromkeys(("mrpc", "qqp"), ("accuracy", "f1"))
    own = {"cola": ("matthews_correlation", "accuracy"), "stsb": ("pearson", "spearmanr")}
    assert found == dict.fromkeys(CONFIGS, ("accuracy",)) | both | own


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "tsv"])
@pytest.mark.parametrize("named", [False, True], ids=["indices", "names"])
def test_formats_and_label_names_agree(tmp_path: Path, suffix: str, named: bool) -> None:
    frame = qnli_rows(8)
    expected = qnli(folder_with(tmp_path / "a", frame)).load() if (tmp_path / "a").mkdir() is None else None
    if named:
        frame["label"] = frame["label"].map({0: "entailment", 1: "not_entailment"})
    (tmp_path / "b").mkdir()
    read = qnli(folder_with(tmp_path / "b", frame, suffix)).load()
    assert expected is not None
    assert read.train.fingerprint == expected.train.fingerprint


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "tsv"])
def test_texts_arrive_as_they_are(tmp_path: Path, suffix: str) -> None:
    odd = ['He said "no', "null", "NA", "007", "2020-01-01", "  spaces ", "naïve — 日本語", "True"]
    frame = pd.DataFrame({"question": odd, "sentence": odd[::-1], "label": [0, 1] * 4})
    read = qnli(folder_with(tmp_path, frame, suffix)).load().evaluation
    assert read.texts == tuple(zip(odd, odd[::-1], strict=True))


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    first = qnli(folder_with(tmp_path, qnli_rows(8, seed=1))).load().train.fingerprint
    assert qnli(folder_with(tmp_path, qnli_rows(8, seed=2))).load().train.fingerprint != first


def test_mnli_takes_either_name_of_its_evaluation_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"premise": ["a"], "hypothesis": ["b"], "label": ["contradiction"]})
    for split in ("train", "validation_matched"):
        write(frame, tmp_path / f"{split}.jsonl")
    assert configured("mnli", data_dir=tmp_path).load().evaluation.labels.tolist() == [2]
    write(frame, tmp_path / "validation.jsonl")
    with pytest.raises(
        ValueError, match=r"validation\.jsonl and validation_matched\.jsonl for the same split"
    ):
        configured("mnli", data_dir=tmp_path).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence": None}, r"row 0 holds nothing"),
        (
            {"label": -1},
            r"row 0: unknown label '-1', which marks the hidden labels of a test set; allowed are "
            r"0 \(entailment\)",
        ),
        (
            {"label": [0, 1, None, 1]},
            "row 2: label 'nan' means that there is none; remove the rows without a label",
        ),
        ({"label": ["0", "1", "1", "-"]}, "row 3: label '-' means that there is none"),
        ({"label": [0.0, 1.0, 0.5, 1.0]}, "row 2: unknown label '0.5'"),
        ({"label": 2}, r"unknown label '2'; allowed are 0 \(entailment\), 1 \(not_entailment\)"),
        ({"label": "entailmant"}, r"unknown label 'entailmant' \(did you mean 'entailment'"),
        ({"sentence": 7}, r"column 'sentence', row 0 holds 7, which is no text"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict, message: str) -> None:
    folder = folder_with(tmp_path, qnli_rows(4).assign(**change))
    with pytest.raises(ValueError, match=rf"train\.parquet: .*{message}"):
        qnli(folder).load()


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("tsv", "question\tsentence\tlabel\na\tb\t0\na\t0\n", r"line 3 has 2 fields, the header names 3"),
        (
            "tsv",
            "question\tsentence\tlabel\na\tb\t0\na\tb\tc\t0\n",
            r"line 3 has 4 fields, the header names 3",
        ),
        (
            "tsv",
            "question\tsentence\tlabel\n\na\tb\t\n",
            "column 'label', line 3: label '' means that there is none",
        ),
        ("tsv", "a\tb\t0\n", r"no column 'question'; found \['a', 'b', '0'\]"),
        (
            "jsonl",
            '[{"question": "a", "sentence": "b", "label": 0}]',
            r"line 1 holds a JSON array.*jq -c '\.\[\]'",
        ),
        ("jsonl", '{"question": "a", "sentence": "b", "label": 0}\n{"questi', "line 2: Unterminated string"),
        ("jsonl", '\n"a"\n', "line 2 holds 'a', expected an object"),
        (
            "parquet",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("tsv", "\ufeffquestion".encode("utf-16"), r"is UTF-16, expected UTF-8: iconv"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "utf16",
)
def test_a_wrong_line_is_named(tmp_path: Path, suffix: str, content: str | bytes, message: str) -> None:
    path = tmp_path / f"train.{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"train\.{suffix}.*{message}"):
        qnli(tmp_path).load()


@pytest.mark.parametrize("suffix", ["jsonl", "tsv"])
@pytest.mark.parametrize("change", ["plain", "CRLF", "BOM", "blank line", "tabs at the end"])
def test_line_ends_and_byte_order_marks_change_no_row(tmp_path: Path, suffix: str, change: str) -> None:
    frame = pd.DataFrame({"question": ["a\rb", "c\u2028d\x85"], "sentence": ['"e', "f"], "label": [0, 1]})
    path = folder_with(tmp_path, frame, suffix) / f"train.{suffix}"
    edits = {
        "CRLF": lambda text: text.replace("\n", "\r\n"),
        "BOM": lambda text: "\ufeff" + text,
        "blank line": lambda text: text + "\n",
        "tabs at the end": lambda text: text.replace("\n", "\t\n") if suffix == "tsv" else text,
        "plain": lambda text: text,
    }
    path.write_bytes(edits[change](path.read_bytes().decode()).encode())
    texts = (("a\rb", '"e'), ("c\u2028d\x85", "f"))
    assert qnli(tmp_path).load().train.texts == texts


@pytest.mark.parametrize("labels", [[0.0, 1.0], ["0", "1"], np.array([0, 1], dtype=np.uint8)], ids=type)
def test_labels_of_any_type_that_holds_whole_numbers(tmp_path: Path, labels: object) -> None:
    frame = pd.DataFrame({"question": ["a", "b"], "sentence": ["c", "d"], "label": labels})
    assert qnli(folder_with(tmp_path, frame)).load().train.labels.tolist() == [0, 1]


def test_the_hub_s_shards_are_read_in_order(tmp_path: Path) -> None:
    frame = qnli_rows(9)
    for number, part in enumerate((frame[:4], frame[4:8], frame[8:])):
        write(part, tmp_path / f"train-{number:05}-of-00003.parquet")
    write(frame, tmp_path / "validation-00000-of-00001.parquet")
    write(frame, tmp_path / "test-00000-of-00001.parquet")
    splits = qnli(tmp_path).load()
    assert splits.train.fingerprint == splits.evaluation.fingerprint
    write(frame.assign(label=7), tmp_path / "train-00002-of-00003.parquet")
    with pytest.raises(ValueError, match=r"train-\*\.parquet: column 'label', row 8: unknown label '7'"):
        qnli(tmp_path).load()
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train-00001-of-00003\.parquet: it has 2 of 3 shards"):
        qnli(tmp_path).load()


@pytest.mark.parametrize(
    ("name", "evaluation", "lines", "texts", "labels"),
    [
        ("cola", "dev", ["gj04\t1\t\tthe cat is red", "gj04\t0\t*\tcat the"], ("the cat is red",), [1, 0]),
        (
            "mrpc",
            "dev",
            ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\ta\tb"],
            ("a", "b"),
            [1],
        ),
        (
            "qqp",
            "dev",
            ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\ta\tb\t1"],
            ("a", "b"),
            [1],
        ),
        (
            "mnli",
            "dev_matched",
            ["index\tsentence1\tsentence2\tgold_label", "0\ta\tb\tneutral"],
            ("a", "b"),
            [1],
        ),
        ("stsb", "dev", ["index\tsentence1\tsentence2\tscore", "0\ta\tb\t2.5"], ("a", "b"), [2.5]),
    ],
)
def test_the_files_of_glue_s_own_archive(
    tmp_path: Path, name: str, evaluation: str, lines: list[str], texts: tuple[str, ...], labels: list[float]
) -> None:
    for stem in ("train", evaluation):
        (tmp_path / f"{stem}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = configured(name, data_dir=tmp_path).load().evaluation
    assert read.texts[0] == texts
    assert read.labels.tolist() == labels


@pytest.mark.parametrize("label", [-1.0, 5.5, math.nan, "high"])
def test_scores_outside_their_bounds_are_refused(tmp_path: Path, label: object) -> None:
    frame = pd.DataFrame({"sentence1": ["a"], "sentence2": ["b"], "label": [label]})
    with pytest.raises(ValueError, match=r"label .* is no score in \[0, 5\]"):
        configured("stsb", data_dir=folder_with(tmp_path, frame)).load()


def test_wrong_columns_are_listed_with_the_nearest(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, qnli_rows(4).rename(columns={"sentence": "sentense"}))
    expected = r"no column 'sentence'; found \['question', 'sentense'"
    with pytest.raises(ValueError, match=rf"{expected}.*did you mean 'sentense'"):
        qnli(folder).load()


def test_missing_empty_and_doubled_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"nowhere is no folder; expected one with train\.\{parquet,csv,tsv,jsonl,json\}",
    ):
        qnli(tmp_path / "nowhere").load()
    with pytest.raises(
        FileNotFoundError, match=r"has no train\.\{parquet,csv,tsv,jsonl,json\}; it holds nothing"
    ):
        qnli(tmp_path).load()
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"it holds train\.txt"):
        qnli(tmp_path).load()
    for suffix in ("parquet", "tsv"):
        write(qnli_rows(4), tmp_path / f"train.{suffix}")
    with pytest.raises(ValueError, match=r"train\.parquet and train\.tsv for the same split; keep one"):
        qnli(tmp_path).load()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "tsv"])
def test_broken_and_empty_files_are_named(tmp_path: Path, suffix: str) -> None:
    folder = folder_with(tmp_path, qnli_rows(4), suffix)
    for content in (
        b"",
        b"\xff\xfe{]broken\tfile\n\xff\tx\ty\tz\n",
        (folder / f"train.{suffix}").read_bytes()[:-9],
    ):
        (folder / f"train.{suffix}").write_bytes(content)
        with pytest.raises(ValueError, match=rf"train\.{suffix}"):
            qnli(folder).load()
    write(qnli_rows(0), folder / f"train.{suffix}")
    with pytest.raises(ValueError, match=rf"train\.{suffix}"):
        qnli(folder).load()


def test_the_hub_is_asked_for_the_named_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def load_dataset(hub: str, config: str, *, revision: str) -> datasets.DatasetDict:
        asked.append((hub, config, revision))
        frame = pd.DataFrame({"premise": ["a"], "hypothesis": ["b"], "label": [1]})
        splits = ("train", "validation_matched", "validation_mismatched", "test_matched")
        return datasets.DatasetDict({split: datasets.Dataset.from_pandas(frame) for split in splits})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert configured("mnli", revision="abc").load().evaluation.labels.tolist() == [1]
    assert asked == [("nyu-mll/glue", "mnli", "abc")]
    with pytest.raises(OSError, match=r"glue/mnli has no split 'validation_mached' \(did you mean"):
        configured("mnli", evaluation_split="validation_mached").load()


@pytest.mark.parametrize(
    "error", [ConnectionError("offline"), FileNotFoundError("no such set"), ValueError("no config")]
)
def test_a_failing_hub_says_what_else_can_be_done(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        OSError, match=rf"nyu-mll/glue/rte cannot be loaded.*{error}.*task\.data_dir=<folder of"
    ):
        configured("rte").load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": "qnil"}, r"config must be one of cola.*got 'qnil' \(did you mean 'qnli'"),
        (
            {"metrics": ("acuracy",)},
            r"metrics must be one of accuracy.*got 'acuracy' \(did you mean 'accuracy'",
        ),
        ({"metrics": ("pearson",)}, r"metrics must be one of accuracy, f1"),
        ({"metrics": ()}, "at least one metric"),
        ({"labels": ("a",)}, "at least two different names"),
        ({"labels": ("a", "a")}, "at least two different names"),
        ({"labels": (False, True)}, "labels must be texts, got False: quote it; YAML reads yes, no"),
        ({"labels": (0, 1)}, "labels must be texts, got 0: quote it"),
        ({"text": (True,)}, "text must be texts, got True: quote it"),
        ({"max_length": 2}, "max_length must be a whole number of at least 4, got 2"),
        ({"text": ("a", "b", "c")}, "one or two columns"),
    ],
)
def test_tasks_check_themselves(settings: dict, message: str) -> None:
    fields = {"labels": ("a", "b"), "metrics": ("accuracy",), "config": "qnli", "text": ("question",)}
    with pytest.raises(ValueError, match=message):
        Glue(name="t", **(fields | settings))


def test_examples_are_named_by_content_and_order() -> None:
    def of(*texts: tuple[str, ...]) -> Texts:
        return Texts(texts=texts, labels=np.arange(len(texts)))

    prints = [
        of(("ab", "c")),
        of(("a", "bc")),
        of(("ab",), ("c",)),
        of(("c",), ("ab",)),
        of(("ab", "c"), ("d", "e")),
    ]
    assert len({each.fingerprint for each in prints}) == len(prints)
    assert of(("ab", "c")).fingerprint == prints[0].fingerprint
    relabelled = Texts(texts=(("ab", "c"),), labels=np.array([1]))
    assert relabelled.fingerprint != prints[0].fingerprint
    with pytest.raises(ValueError, match="1 texts and 2 labels"):
        Texts(texts=(("a",),), labels=np.zeros(2))


def test_head_and_take() -> None:
    examples = Texts(texts=(("a",), ("b",), ("c",)), labels=np.array([0, 1, 2]))
    assert examples.head(2).texts == (("a",), ("b",))
    assert len(examples.head(9)) == 3
    assert examples.take([2, 0]).texts == (("c",), ("a",))
    assert examples.take([2, 0]).labels.tolist() == [2, 0]


def test_metrics_by_hand() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0], [5.0, 0.0], [0.0, 1.0]])  # answers 0 1 1 0 1
    labels = np.array([0, 1, 0, 1, 1])
    found = metrics.compute(["accuracy", "f1", "matthews_correlation"], logits, labels)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))  # 2 TP / (2 TP + FP + FN)
    assert found["matthews_correlation"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    expected = -log_softmax(logits, axis=1)[np.arange(5), labels].mean()
    assert metrics.mean_loss(Kind.CLASSES, logits, labels) == pytest.approx(expected)


def test_regression_metrics_by_hand() -> None:
    scores, labels = np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([0, 1, 2, 3], dtype=np.float32)
    found = metrics.compute(["pearson", "spearmanr"], scores, labels)
    assert found["pearson"] == pytest.approx(np.corrcoef(scores[:, 0], labels)[0, 1])
    assert found["spearmanr"] == pytest.approx(1.0)
    assert metrics.mean_loss(Kind.REGRESSION, scores, labels) == pytest.approx((1 + 1 + 4 + 25) / 4)


@given(seed=st.integers(0, 1000), rows=st.integers(2, 40))
def test_of_right_and_wrong_answers_as_sklearn_has_them(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(rows, 2)), random.integers(0, 2, rows)
    answers = logits.argmax(-1)
    assert metrics.f1(logits, labels) == pytest.approx(f1_score(labels, answers, zero_division=0.0))
    constant = np.ptp(answers) == 0 or np.ptp(labels) == 0
    expected = 0.0 if constant else matthews_corrcoef(labels, answers)
    assert metrics.matthews_correlation(logits, labels) == pytest.approx(expected)


def test_matthews_correlation_is_for_two_classes() -> None:
    with pytest.raises(ValueError, match="two classes, got logits of 3"):
        metrics.matthews_correlation(np.eye(3), np.arange(3))


@pytest.mark.parametrize("name", ["f1", "matthews_correlation", "pearson", "spearmanr"])
def test_constant_answers_score_nothing_and_warn_of_nothing(name: str) -> None:
    labels = np.array([0, 1, 0, 1])
    logits = np.tile([[1.0, 0.0]], (4, 1)) if name in metrics.CLASSIFICATION else np.ones((4, 1))
    assert metrics.compute([name], logits, labels) == {name: 0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = np.array([[0.0, 1.0], [bad, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="logits of 1 of 3 examples are NaN or infinite"):
        metrics.compute(["accuracy"], logits, np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="1 of 3"):
        metrics.mean_loss(Kind.CLASSES, logits, np.zeros(3, dtype=np.int64))


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_metrics_stay_in_their_bounds(rows: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(rows, classes)), generator.integers(0, 2, rows)
    assert 0 <= metrics.accuracy(logits, labels) <= 1
    assert metrics.mean_loss(Kind.CLASSES, logits, labels) >= 0
    assert -1 <= metrics.pearson(logits, labels) <= 1
    shifted = logits + 1e4  # cross entropy does not see what is added to every class
    assert metrics.mean_loss(Kind.CLASSES, shifted, labels) == pytest.approx(
        metrics.mean_loss(Kind.CLASSES, logits, labels), abs=1e-9
    )


@pytest.mark.parametrize(
    ("name", "count", "share"), [("qnli", 5463, 2702), ("rte", 277, 146), ("mrpc", 408, 129)]
)
def test_the_real_data_reads(shared: Path, name: str, count: int, share: int) -> None:
    evaluation = configured(name, data_dir=shared / "data" / "glue" / name).load().evaluation
    assert len(evaluation) == count
    assert (evaluation.labels == 0).sum() == share
