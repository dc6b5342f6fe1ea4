"""Where the texts of decoders' tasks come from, for both of these tasks alike."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import datasets
import pytest
from decoders import decoder_folder, text
from labs import Lab

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


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Trials of a tiny decoder, which write nothing."""
    model = ("model=hf", f"model.path={decoder_folder(tmp_path / 'decoder')}", "model.device=cpu")
    few = ("evaluation.limit=12", "calibration.samples=8", "placement=gemm")
    return Lab((*model, *few, "profile=off", "tracking=off"))


def test_the_examples_of_the_documentation_run(lab: Lab, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in page.splitlines() if "model=smollm2" in line]
    for number, name in enumerate(("wiki.test.txt", "wiki.valid.txt")):
        (tmp_path / name).write_text(text(400, seed=number))
    write(tmp_path / "lambada.jsonl", *(text(9, seed=seed).split("\n")[0] + " the cat" for seed in range(60)))
    short = {"task=perplexity": ["task.window=16"], "task=last_word": ["task.max_length=32"]}
    assert len(commands) == len(short)
    for words in commands:
        given = [re.sub(r"(data|calibration)=", rf"\1={tmp_path}/", word) for word in words if "task" in word]
        metrics = lab.trial(*given, *short[given[0]]).metrics
        assert {"perplexity_ratio", "last_word_accuracy_drop"} & metrics.keys()


def test_a_trial_says_how_many_documents_it_left_out(lab: Lab, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text(40 if seed % 3 else 6, seed)}) for seed in range(18)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    windows = (
        "task=perplexity",
        "task.documents=apart",
        "task.window=16",
        "evaluation.limit=null",
        "calibration.samples=2",
    )
    source = (f"task.data={tmp_path / 'docs.jsonl'}", "task.calibration_share=0.3")
    result = lab.trial(*windows, *source)
    assert re.fullmatch(r"[45] of 1[34]", result.tags["documents_dropped"])
    assert result.clusters is not None and len(result.clusters) > len(set(result.clusters))
