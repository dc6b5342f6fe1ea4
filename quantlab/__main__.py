"""``quantlab <command> ...``: runs ``python -m quantlab.<command> ...``."""

import os
import sys
from importlib.metadata import version
from runpy import run_module

from quantlab.cli.commands import COMMANDS, overview
from quantlab.cli.signals import printed
from quantlab.config.checks import nearest


def main() -> None:
    """Reads ``sys.argv``. Ends with status 2 and one line where the command does not exist."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        if status := printed(overview()):
            sys.exit(status)
    elif name == "--version":
        print(version("quantlab"))
    elif name in ("-sc", "--shell-completion"):
        _complete(rest)
    elif name in COMMANDS:
        _run(name, rest)
    else:
        print(
            f"quantlab has no command {name}{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        sys.exit(2)


def _run(name: str, arguments: list[str]) -> None:
    sys.argv = [f"quantlab {name}", *arguments]
    run_module(f"quantlab.{name}", run_name="__main__", alter_sys=True)


def _complete(arguments: list[str]) -> None:
    """Completes the command that stands on the line, or its name (bash gives the line in COMP_LINE).

    Hydra completes ``<program> <settings>``: it gets the line without the command.
    """
    if not any(argument.startswith("query=") for argument in arguments):  # install=bash, uninstall=bash
        _run("run", ["-sc", *arguments])
        return
    program, *words = os.environ.get("COMP_LINE", "quantlab ").split(" ")
    if len(words) < 2:
        print(" ".join(COMMANDS))
    elif words[0] in COMMANDS and COMMANDS[words[0]].config:
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
        _run(words[0], ["-sc", *arguments])


if __name__ == "__main__":
    main()
