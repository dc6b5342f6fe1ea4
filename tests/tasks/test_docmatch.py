"""The embedded task: honest pairs, the same in every process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantlab.tasks import docmatch
from quantlab.tasks.docmatch import MATCH, MISMATCH, DocMatch, paragraph
from quantlab.tasks.task import Splits

FINGERPRINTS = """
import {first}
from quantlab.tasks.docmatch import DocMatch
splits = DocMatch(name="docmatch", labels=("mismatch", "match"), metrics=("accuracy",)).load()
print(splits.train.fingerprint, splits.evaluation.fingerprint)
"""


def task() -> DocMatch:
    return DocMatch(name="docmatch", labels=("mismatch", "match"), metrics=("accuracy",), max_length=64)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTLAB_CACHE", str(tmp_path_factory.mktemp("docmatch")))
        return task().load()


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("Return the sum of both numbers.", "Return the sum of both numbers."),
        ("add(a, b)\n\nReturn the sum of both numbers.\n\nMore.", "Return the sum of both numbers."),
        (
            "abs(input: Tensor, *, out=None) -> Tensor\n\n\nComputes  the\n    absolute value.",
            "Computes the absolute value.",
        ),
        ("x.add(a) -> None\n\nAdd an element to the set.", "Add an element to the set."),
        (".. deprecated:: 1.0\n   Use other.\n\nReturns what it was given.", "Returns what it was given."),
        ("Computes :func:`~torch.abs` of ``x`` and `y`, slowly.", "Computes torch.abs of x and y, slowly."),
        ("Parameters\n----------\nx : int\n", None),
        ("Too short.", None),
        ("The object <thing at 0x7fc08d224110> in memory.", None),
        ("Reads all of the file /etc/passwd/shadow here.", None),
        ("See :func:`torch.abs` and the others there.", None),
        ("", None),
    ],
)
def test_paragraphs(doc: str, expected: str | None) -> None:
    assert paragraph(doc) == expected


def test_size_and_shares(splits: Splits) -> None:
    train, evaluation = len(splits.train), len(splits.evaluation)
    assert 8_000 < train + evaluation < 30_000
    assert 0.17 < evaluation / (train + evaluation) < 0.23


def test_nothing_leaks_between_the_splits(splits: Splits) -> None:
    for side in (0, 1):
        seen = [{texts[side] for texts in part.texts} for part in (splits.train, splits.evaluation)]
        assert not seen[0] & seen[1]


@pytest.mark.parametrize("part", ["train", "evaluation"])
def test_neither_half_of_a_pair_tells_its_label(splits: Splits, part: str) -> None:
    examples = getattr(splits, part)
    matches = {texts for texts, label in zip(examples.texts, examples.labels, strict=True) if label == MATCH}
    others = {
        texts for texts, label in zip(examples.texts, examples.labels, strict=True) if label == MISMATCH
    }
    assert len(matches) + len(others) == len(examples)
    assert not matches & others
    for side in (0, 1):
        assert sorted(texts[side] for texts in matches) == sorted(texts[side] for texts in others)


def test_mismatches_come_from_the_same_package(splits: Splits) -> None:
    described = {texts[1]: texts[0] for texts, label in _rows(splits) if label == MATCH}
    for texts, label in _rows(splits):
        if label == MISMATCH:
            assert _package(described[texts[1]]) == _package(texts[0])


def _rows(splits: Splits) -> list[tuple[tuple[str, ...], int]]:
    return [
        pair
        for part in (splits.train, splits.evaluation)
        for pair in zip(part.texts, part.labels, strict=True)
    ]


def _package(question: str) -> str:
    name = question.removeprefix("What does ").removesuffix(" do?")
    return name.partition(".")[0] if "." in name else "builtins"


@pytest.mark.parametrize("count", [2, 64, 400])
def test_the_first_rows_are_balanced_and_mixed(splits: Splits, count: int) -> None:
    head = splits.evaluation.head(count)
    assert head.labels.mean() == 0.5
    assert len({texts[0] for texts in head.texts}) > 0.8 * count
    assert count < 64 or len({_package(texts[0]) for texts in head.texts}) > 8


def test_nothing_of_this_machine_is_in_the_texts(splits: Splits) -> None:
    texts = " ".join(text for row, _ in _rows(splits) for text in row)
    assert "0x7f" not in texts
    for place in (str(Path.home()), str(Path.cwd()), sys.prefix):
        assert f" {place}/" not in texts


def test_known_pairs_are_there(splits: Splits) -> None:
    matches = dict(texts for texts, label in _rows(splits) if label == MATCH)
    assert matches["What does scipy.linalg.expm do?"] == "Compute the matrix exponential of an array."
    assert matches["What does torch.addmm do?"].startswith(
        "Performs a matrix multiplication of the matrices mat1"
    )
    assert matches["What does math.cos do?"] == "Return the cosine of x (measured in radians)."


def test_the_second_load_reads_the_first_ones_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docmatch, "MODULES", ("json", "textwrap", "heapq"))
    first = task().load()
    monkeypatch.setattr(docmatch, "build", lambda: pytest.fail("built again"))
    second = task().load()
    assert first.train.fingerprint == second.train.fingerprint
    assert np.array_equal(first.evaluation.labels, second.evaluation.labels)
    monkeypatch.setattr(docmatch, "MODULES", ("json", "heapq"))
    with pytest.raises(pytest.fail.Exception, match="built again"):
        task().load()


@pytest.mark.slow
def test_another_process_builds_the_same(splits: Splits, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", FINGERPRINTS.format(first="transformers, torch.package")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [splits.train.fingerprint, splits.evaluation.fingerprint]
    assert not list(tmp_path.iterdir())


def test_its_labels_are_its_own() -> None:
    with pytest.raises(
        ValueError, match=r"labels of docmatch are \['mismatch', 'match'\], got \['no', 'yes'\]"
    ):
        DocMatch(name="docmatch", labels=("no", "yes"), metrics=("accuracy",))
