"""The examples of the documents run as they stand there."""

import re
import shlex
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import family_config, qnli_rows, tokenizer
from processes import Python
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ErnieConfig

import quantlab
from quantlab.network.checkpoint import quiet
from quantlab.results.saved import SavedTrial, load_trial
from quantlab.trial.trained import HISTORY

ROOT = Path(__file__).parents[1]
EXTENDING = ROOT / "docs" / "extending.md"
CALLS = [
    path
    for path in (ROOT / "README.md", ROOT / "docs" / "python.md")
    if "import quantlab\n" in path.read_text()
]


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page in one language, block by block."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def write_examples(folder: Path) -> list[str]:
    """Writes every block that begins with ``# <path>`` to this path. Returns the paths."""
    files = [*blocks(EXTENDING, "python"), *blocks(EXTENDING, "yaml")]
    names = [text.splitlines()[0].removeprefix("# ") for text in files]
    for name, text in zip(names, files, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return names


def ernie(folder: Path) -> Path:
    """A random checkpoint of an architecture that quantlab has no table for."""
    labels = {0: "can_wait", 1: "urgent"}
    settings = {**family_config("bert", 12).to_diff_dict(), "model_type": "ernie", "id2label": labels}
    with torch.random.fork_rng(), quiet():
        AutoModelForSequenceClassification.from_config(ErnieConfig(**settings)).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE tickets (id INTEGER PRIMARY KEY, split, text, urgent INTEGER)")
        for split, count in (("train", 80), ("test", 40)):
            rows = qnli_rows(count).itertuples()
            values = [(split, row.sentence, row.label) for row in rows]
            connection.executemany("INSERT INTO tickets (split, text, urgent) VALUES (?, ?, ?)", values)
    connection.close()


def test_the_extensions_run_outside_the_repository(tmp_path: Path, python: Python) -> None:
    """A method, a transform, an estimator, a task and an architecture of one's own, in the one trial that the
    page starts."""
    names = write_examples(tmp_path)
    assert {"mine/deepest.py", "mine/spread.py", "mine/tickets.py", "quantlab_families/ernie.py"} <= set(
        names
    )
    database(tmp_path / "tickets.db")
    (command,) = (text.replace("\\\n", "") for text in blocks(EXTENDING, "bash"))
    path, _, *arguments = shlex.split(command.replace("path/to/ernie", str(ernie(tmp_path / "ernie"))))
    assert path == "PYTHONPATH=."  # here the current folder is on the path anyway
    trial = ran(tmp_path, python, "first", *arguments)
    targets = {trial.config[part]["_target_"] for part in ("method", "transform", "calibration", "task")}
    assert targets == {
        "mine.deepest.Deepest",
        "mine.unit.Unit",
        "mine.spread.Spread",
        "mine.tickets.Tickets",
    }
    assert {"0.attn.context", "11.ffn.mid"} <= {item.site for item in trial.plan.transforms}
    grids = {item.site: str(item.grid) for item in trial.plan.activations}
    assert grids["11.ffn.sum"] == "fp16" and grids["9.ffn.sum"] == "int8 asymmetric"
    table = tmp_path / "quantlab_families" / "ernie.py"
    table.write_text(table.read_text() + "\n# changed")
    assert ran(tmp_path, python, "second", *arguments).tags["key"] != trial.tags["key"]


def test_a_training_of_ones_own(
    tiny_bert: Path, tiny_glue: Path, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_examples(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    quantlab.run_trial(
        "training=flat",
        "training.recipe.learning_rate=1e-3",
        "model=hf",
        f"model.path={tiny_bert}",
        "task=qnli",
        f"task.data_dir={tiny_glue}",
        "task.max_length=32",
        "calibration.samples=8",
        "profile=off",
        config_dir=tmp_path / "conf",
    )
    (history,) = empty_cache.rglob(HISTORY)
    penalties = pd.read_csv(history)["penalty"]
    assert (penalties > 0).all() and penalties.iloc[-1] < penalties.iloc[0]


def ran(folder: Path, python: Python, name: str, *arguments: str) -> SavedTrial:
    done = python.run(*arguments, "profile=off", "tracking=off", f"hydra.run.dir={name}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return load_trial(folder / name)


@pytest.mark.parametrize("page", CALLS, ids=lambda page: page.name)
def test_the_calls_from_python(
    page: Path, tiny_bert: Path, tiny_glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (text for text in blocks(page, "python") if "import quantlab\n" in text)
    small = f'"task=qnli", "task.data_dir={tiny_glue}", "task.max_length=32", "calibration.samples=8"'
    code = code.replace("path/to/checkpoint", str(tiny_bert)).replace('"task=qnli"', small)
    words = AutoTokenizer.from_pretrained(tiny_bert)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    variables = {"model": model, "tokenizer": words, "inputs": words("a cat", return_tensors="pt")}
    exec(code, variables)
    assert variables["logits"].shape == (1, 2)
    assert variables["result"].metrics["accuracy"] == variables["trial"].metrics["accuracy"]
