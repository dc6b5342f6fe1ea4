"""README says what is so: its commands exist and its configs compose."""

import re
import shlex
import tomllib
from collections.abc import Collection
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from quantlab import export, report, sync
from quantlab.cli.catalogue import register
from quantlab.cli.conf_dir import CONF

register()
register("search")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    blocks = [
        block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    joined = [block.replace("\\\n", " ") for block in blocks]
    return [
        line.strip() for block in joined for line in block.splitlines() if line.strip() and line[0] != "#"
    ]


def of(modules: Collection[str]) -> list[list[str]]:
    """The commands that run one of these modules, as words from its name on."""
    split = [_as_module(shlex.split(line, comments=True)) for line in commands() if "quantlab" in line]
    split = [words for words in split if "--config-dir" not in words]  # those run, in test_examples.py
    asked = [words[words.index("-m") + 1 :] for words in split if "-m" in words]
    return [words for words in asked if words[0] in modules]


def _as_module(words: list[str]) -> list[str]:
    """``quantlab run ...`` as ``python -m quantlab.run ...``."""
    if words[:1] != ["quantlab"] or words[1].startswith("-"):
        return words
    return ["python", "-m", f"quantlab.{words[1]}", *words[2:]]


PLAIN = {module.__name__: module.main for module in (export, report, sync)}
HYDRA = [f"quantlab.{name}" for name in ("run", "search", "sensitivity", "finetune", "outliers")]


def test_every_extra_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    section = PAGES[0].read_text().split("## Install and try")[1].split("\n## ")[0]
    assert not [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in section]


def test_every_command_is_looked_at() -> None:
    named = [line for line in commands() if re.search(r"(-m quantlab\.|^quantlab )(?!--)", line)]
    assert len(of([*PLAIN, *HYDRA])) == sum("--config-dir" not in line for line in named)


@pytest.mark.parametrize("words", of(PLAIN), ids=" ".join)
def test_the_words_of_a_command_are_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse ends the program at those that are not; where nothing is, as here, nothing is found."""
    monkeypatch.chdir(tmp_path)
    module, *arguments = words
    assert PLAIN[module](arguments) in (0, 1)


@pytest.mark.parametrize("words", of(HYDRA), ids=" ".join)
def test_a_command_composes(words: list[str]) -> None:
    module = words[0]
    known = {"quantlab.run": "config", "quantlab.sensitivity": "search"}
    known |= {f"quantlab.{name}": name for name in ("finetune", "search", "outliers")}
    config = known[module]
    overrides = [word for word in words[1:] if word != "-m"]
    overrides = [
        re.sub("^method=found/.*", "method=per_site", word) for word in overrides
    ]  # there after a search
    first = [
        re.sub(r"=([\w.]+),[\w.,]+$", r"=\1", word) for word in overrides if not word.startswith("hydra.")
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        compose(config, first)


@pytest.mark.parametrize("target", re.findall(r"make (\w+)", "\n".join(commands())))
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_there_are_commands() -> None:
    assert len(commands()) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
