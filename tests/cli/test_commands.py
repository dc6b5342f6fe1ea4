"""``quantlab``: its commands, their help, and what the command line says of a mistake."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantlab import __main__, finetune, list, outliers, run, search, sensitivity
from quantlab.cli import signals
from quantlab.cli.commands import COMMANDS, choices, sweep_files
from quantlab.cli.conf_dir import CONF

HYDRA = {"run": run, "search": search, "outliers": outliers, "sensitivity": sensitivity, "finetune": finetune}
SCREEN = 50  # lines
MISTAKES = [
    ("methd=peg", "there is no setting methd (did you mean 'method'?)"),
    ("bits.wieghts=4", "there is no setting bits.wieghts (did you mean 'bits.weights'?)"),
    ("method.k=4", "there is no setting method.k; method=grouped and method=peg and method=rptq have it"),
    ("bits", "'bits' is no setting: write name=value"),
    ("method=pge", "there is no method=pge (did you mean 'peg'?); method is one of"),
    ("method=found/mine", "conf/method/found has no mine.yaml"),
    ("+sweeps=peg", "there is no sweeps=peg (did you mean 'peg_k'?)"),
    ("sweeps=peg_k", "no sweeps is chosen so far, so it is added: +sweeps=peg_k"),
    ("model=hf", "model.path has no value: give one with model.path=..."),
    ("method.x=${nowhere}", "there is no setting method.x"),
    ("--config-dri", "quantlab run has no option --config-dri (did you mean '--config-dir'?)"),
    ("bits.weights=1", "bits.weights: bits must be a whole number in 2..16, got 1"),
    ("+bits.nothing=1", "there is no setting bits.nothing"),
    ("+clip=mine", "there is no setting clip"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("word", "message"), MISTAKES, ids=[word for word, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    word: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", word])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert message in str(ended.value) and "\n" not in str(ended.value)
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("name", HYDRA)
def test_help_is_one_screen(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    HYDRA[name].main()
    page = capsys.readouterr().out
    assert len(page.splitlines()) <= SCREEN
    parts = ("Slots and their choices", "Examples:", "Docs:", *choices("model"), *COMMANDS[name].examples)
    assert all(part in page for part in parts)


def test_the_dispatcher_knows_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quantlab"])
    __main__.main()
    page = capsys.readouterr().out
    assert all(f"  {name} " in page for name in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["quantlab", "serach"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "no command serach (did you mean 'search'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "answer"),
    [("quantlab se", "search"), ("quantlab run method=pe", "method=peg"), ("quantlab report mul", "")],
)
def test_bash_completes(
    line: str, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quantlab", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.delitem(sys.modules, "quantlab.run")  # runpy warns of a module that is imported already
    monkeypatch.setattr(signals, "end_on_sigterm", lambda: None)
    __main__.main()
    assert answer in capsys.readouterr().out


@pytest.mark.parametrize("command", [lambda: list.main(["methods"]), __main__.main], ids=["list", "help"])
def test_a_reader_that_has_gone_ends_a_list_quietly(
    monkeypatch: pytest.MonkeyPatch, command: Callable[[], int]
) -> None:
    """As ``quantlab list methods | head -1`` may."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:  # whose exit flushes, as a program's does
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", ["quantlab", "--help"])
        with pytest.raises(SystemExit, match="141"):
            sys.exit(command())
        monkeypatch.undo()


def test_everything_to_choose_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for path in [*Path(CONF).glob("*/*.yaml"), *sweep_files("sweep"), *sweep_files("search")]:
        assert list.sentence(path) or path.stem == "base", path
        assert not list.sentence(path).endswith("al."), path  # "et al." ends no sentence
    assert list.main(["methods"]) == 0
    assert "Per-embedding-group quantization" in capsys.readouterr().out
    assert list.main(["metods"]) == 1
    assert "did you mean 'method'" in capsys.readouterr().err


def test_the_sites_of_a_model(tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list.main(["sites", "model=hf", f"model.path={tiny_bert}"]) == 0
    assert "1.ffn.sum" in capsys.readouterr().out
    assert list.main(["sites", "model=hff"]) == 1
    assert "there is no model=hff (did you mean 'hf'?)" in capsys.readouterr().err
