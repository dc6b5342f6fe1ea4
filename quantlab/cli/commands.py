"""quantlab's commands: what each does, and the pages that ``--help`` prints."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import TextWrapper

from quantlab.cli.conf_dir import CONF, SWEEPS

WIDTH = 100  # of a help page
# A slot in the defaults list of conf/*.yaml: `  - bits: w8a8 # how many bits weights and activations get`
SLOT = re.compile(r"^  - (?P<name>\w+): (?P<choice>\w+) # (?P<asks>.*)$", re.MULTILINE)
SETTING = re.compile(r"^  (?P<name>[a-z]\w*):", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command as its help shows it. A Hydra command composes ``conf/<config>.yaml``."""

    name: str
    summary: str
    examples: tuple[str, ...]
    docs: str
    config: str = ""


_ALL = (
    Command(
        name="run",
        summary="Run one trial: quantize, evaluate, profile, log. With -m, a sweep of trials.",
        examples=(
            "quantlab run method=peg method.k=4 bits.symmetric=true",
            "quantlab run model=hf model.path=<folder or hub name> task=rte evaluation.limit=500",
            "quantlab run -m +sweeps=paper_table",
        ),
        docs="docs/sweeps.md",
        config="config",
    ),
    Command(
        name="search",
        summary="Search for the cheapest precisions of activations that keep the answers.",
        examples=(
            "quantlab search +sweeps=mixed_precision",
            "quantlab search 'search.choices=[int8,fp16]' search.max_drop=1 search.budget=30",
            "quantlab search -m +sweeps=mixed_precision search.worker=1,2,3 launcher=joblib",
        ),
        docs="docs/search.md",
        config="search",
    ),
    Command(
        name="report",
        summary="Write one page about a sweep, about trials, or about runs of MLflow.",
        examples=(
            "quantlab report multirun/sweeps/paper_table-0123abcd",
            "quantlab report outputs/2026-01-01/12-00-00 multirun/trials/5e1f...",
            "quantlab report multirun/sweeps/paper_table-0123abcd --format tex",
        ),
        docs="docs/report.md",
    ),
    Command(
        name="outliers",
        summary="Find out why a quantization fails: which channels, tokens, sites and weights do it.",
        examples=(
            "quantlab outliers",
            "quantlab outliers outliers.random_draws=0 'outliers.clip=[]' evaluation.limit=400",
            "quantlab outliers model=hf model.path=<folder or hub name> task=qnli",
        ),
        docs="docs/outliers.md",
        config="outliers",
    ),
    Command(
        name="sensitivity",
        summary="Score how much the quantization of each site matters, in four ways.",
        examples=(
            "quantlab sensitivity +sweeps=mixed_precision",
            "quantlab sensitivity search.group_by=role evaluation.limit=1000",
            "quantlab sensitivity model=hf model.path=<folder or hub name> task=qnli",
        ),
        docs="docs/search.md",
        config="search",
    ),
    Command(
        name="export",
        summary="Write a finished trial as a folder to deploy: ONNX (answers checked) or compressed-tensors.",
        examples=(
            "quantlab export outputs/2026-01-01/12-00-00",
            "quantlab export multirun/trials/5e1f... --output deployed",
            "quantlab export outputs/2026-01-01/12-00-00 --plan other/plan.json",
            "quantlab export outputs/2026-01-01/12-00-00 --format compressed-tensors",
        ),
        docs="docs/deployment.md",
    ),
    Command(
        name="finetune",
        summary="Train a classifier once, for every later trial that names it.",
        examples=(
            "quantlab finetune",
            "quantlab finetune model=bert_base task=qnli",
            "quantlab finetune model=minilm task=rte model.recipe.epochs=3",
        ),
        docs="README.md",
        config="finetune",
    ),
    Command(
        name="sync",
        summary="Send to MLflow what it has not got yet.",
        examples=(
            "quantlab sync",
            "quantlab sync outputs/2026-01-01/12-00-00",
            "quantlab sync --tracking-uri http://me:secret@localhost:5000",
        ),
        docs="docs/sweeps.md",
    ),
    Command(
        name="list",
        summary="List the choices of a slot, the sweeps, or a model's sites, with a sentence and a file.",
        examples=(
            "quantlab list methods",
            "quantlab list sweeps",
            "quantlab list sites model=hf model.path=<folder or hub name>",
        ),
        docs="docs/extending.md",
    ),
)
COMMANDS = {command.name: command for command in _ALL}


def overview() -> str:
    """The page of ``quantlab --help``."""
    return "\n".join(
        [
            "quantlab: which quantization keeps a transformer's answers, what does it cost, and why did the",
            "others fail?",
            "",
            "Usage: quantlab <command> ...    (the same: python -m quantlab.<command> ...)",
            "",
            "Commands (quantlab <command> --help explains one):",
            *columns((command.name, command.summary) for command in COMMANDS.values()),
            "",
            "A trial is a choice in each slot (quantlab run <slot>=<choice>; *: the default):",
            *columns(_slots("config")),
            "",
            "Examples:",
            "  quantlab run method=peg method.k=4 bits.symmetric=true",
            "  quantlab run -m +sweeps=paper_table",
            "  quantlab report multirun/sweeps/<name>",
            "",
            'Tab completion in bash: eval "$(quantlab -sc install=bash)"',
            "Docs: README.md, docs/",
        ]
    )


def help_page(command: Command) -> str:
    """The page of a Hydra command: its summary, the slots and their choices, examples, where the docs are."""
    settings = _settings(command.config)
    sweeps = ", ".join(path.stem for path in sweep_files("search" if settings else "sweep"))
    return "\n".join(
        [
            f"quantlab {command.name}: {command.summary}",
            "",
            f"Usage: quantlab {command.name} [<slot>=<choice> ...] [<slot>.<setting>=<value> ...]",
            "",
            "Slots and their choices (*: the default):",
            *columns(
                [
                    *_slots(command.config),
                    *((f"{name}.*", ", ".join(names)) for name, names in settings.items()),
                    *([] if command.config == "finetune" else [("+sweeps", f"a prepared study: {sweeps}")]),
                ]
            ),
            "",
            "Examples:",
            *(f"  {example}" for example in command.examples),
            "",
            f"All settings with their values: quantlab {command.name} --cfg job",
            "Your own components: --config-dir <folder>. Hydra's other options: --hydra-help",
            'Tab completion in bash: eval "$(quantlab -sc install=bash)"',
            f"Docs: {command.docs}",
        ]
    )


def parser(command: Command) -> argparse.ArgumentParser:
    """The parser of a command without Hydra, whose ``--help`` ends with examples and the docs."""
    examples = "\n".join(f"  {example}" for example in command.examples)
    return argparse.ArgumentParser(
        prog=f"quantlab {command.name}",
        description=command.summary,
        epilog=f"examples:\n{examples}\n\ndocs: {command.docs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def sweep_files(kind: str) -> list[Path]:
    """The files of ``sweeps/`` that describe a ``sweep`` of trials, or a ``search``."""
    block = re.compile(rf"^{kind}:", re.MULTILINE)
    return [path for path in sorted(SWEEPS.glob("*.yaml")) if block.search(path.read_text(encoding="utf-8"))]


def choices(group: str) -> list[str]:
    """The choices of a slot: the files of its folder, without what others are based on."""
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml") if path.stem != "base")


def _slots(config: str) -> list[tuple[str, str]]:
    """Each slot, with what it asks and its choices, the default marked."""
    own = (Path(CONF) / f"{config}.yaml").read_text(encoding="utf-8")
    slots = [*SLOT.finditer(own)] or [*SLOT.finditer(_text("config"))]
    return [
        (
            slot["name"],
            f"{slot['asks']}: "
            + ", ".join(f"{name}*" if name == slot["choice"] else name for name in choices(slot["name"])),
        )
        for slot in slots
    ]


def _settings(config: str) -> dict[str, list[str]]:
    """The settings of a config's own blocks, such as ``search.*``."""
    blocks = {"search": ["search"], "outliers": ["search", "outliers"]}.get(config, [])
    return {name: SETTING.findall(_text(name).partition(f"\n{name}:")[2]) for name in blocks}


def _text(config: str) -> str:
    return (Path(CONF) / f"{config}.yaml").read_text(encoding="utf-8")


def columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of names at the left and wrapped texts at the right."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    wrap = TextWrapper(WIDTH, subsequent_indent=" " * (width + 4), break_on_hyphens=False)
    return [line for name, text in rows for line in wrap.wrap(f"  {name:{width}}  {text}")]
