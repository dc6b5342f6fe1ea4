"""Where the texts of decoders' tasks come from, for both of these tasks alike."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from quantlab.tasks import hub
from quantlab.tasks.examples import Texts
from quantlab.tasks.last_word import LastWord
from quantlab.tasks.next_tokens import NextTokens
from quantlab.tasks.perplexity import Perplexity

KINDS = {"perplexity": Perplexity, "last_word_accuracy": LastWord}


@pytest.fixture(params=list(KINDS))
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def task(metric: str, data: object, **settings: Any) -> NextTokens:
    return KINDS[metric](name="x", labels=(), metrics=(metric,), data=str(data), **settings)


def texts(examples: Any) -> list[str]:
    assert isinstance(examples, Texts)
    return [text for (text,) in examples.texts]


def write(file: Path, *contents: str, column: str = "text") -> Path:
    file.write_text("".join(f'{{"{column}": "{text}"}}\n' for text in contents))
    return file


def test_a_folder_of_tables(metric: str, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "the cat", column="line")
    write(tmp_path / "validation.jsonl", "a dog", column="line")
    given = task(metric, tmp_path, split="validation", calibration=str(tmp_path), text="line").load()
    assert (texts(given.train), texts(given.evaluation)) == (["the cat"], ["a dog"])


def test_a_data_set_of_the_hub(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, config, revision))
        table = datasets.Dataset.from_dict({"text": [name]})
        return datasets.DatasetDict({"train": table, "test": table})

    monkeypatch.setattr(hub, "unreachable", lambda *_: "")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    given = task(metric, "wikitext", config="raw", revision="v1", calibration="owner/books").load()
    assert (texts(given.train), texts(given.evaluation)) == (["owner/books"], ["wikitext"])
    assert sorted(asked) == [("owner/books", None, None), ("wikitext", "raw", "v1")]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"text": "lines"},
            r"test\.jsonl: no column 'lines'; found \['line', 'text'\] \(did you mean 'line'",
        ),
        ({"calibration": "SAME"}, "is what is evaluated: without it, the first 20% of task.data calibrate"),
        ({"calibration": "none.txt"}, "none.txt is no file and no folder here: give a text, a table"),
        ({"calibration_share": 1}, "task.calibration_share must be between 0 and 1, got 1"),
    ],
)
def test_what_is_wrong_is_said(metric: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"line": "the cat", "text": "a dog"}\n' * 3)
    given = {name: str(file) if value == "SAME" else value for name, value in settings.items()}
    with pytest.raises((ValueError, OSError), match=message):
        task(metric, file, **given).load()


def test_a_text_is_no_table_and_has_to_be_utf8(metric: str, tmp_path: Path) -> None:
    file = tmp_path / "test.txt"
    file.write_bytes(b"the cat\n\xff")
    with pytest.raises(ValueError, match=re.escape(f"{file} is no UTF-8 text: invalid start byte at byte 8")):
        task(metric, file).load()
    with pytest.raises(ValueError, match="task.text=line is for tables"):
        task(metric, file, text="line").load()
