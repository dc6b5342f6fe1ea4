"""Commands that Hydra composes: their help, their errors in one line, and tab completion."""

import functools
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from quantlab.cli.commands import COMMANDS, help_page
from quantlab.cli.conf_dir import CONF
from quantlab.cli.errors import one_line, require_values
from quantlab.cli.secrets import variables
from quantlab.config.checks import nearest

FULL_ERROR = "HYDRA_FULL_ERROR"
HYDRAS_OWN = {".hydra", ".lock"}  # what a run's folder holds before the run has written anything


def hydra_command(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turns a function of the composed config into the command ``name``, which reads ``sys.argv``.

    The command prints quantlab's help page, and ends with status 1 and one line where the input is wrong.
    HYDRA_FULL_ERROR=1 leaves errors to Hydra, which shows where they were raised.
    """
    command = COMMANDS[name]

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def main() -> None:
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_page(command))
                return
            if {"-sc", "--shell-completion"} & set(sys.argv[1:]):
                sys.argv[0] = "quantlab"  # Hydra completes the program of this name
            # Hydra names the job after this module, instead of after the file that the task below lies in.
            with variables({"HYDRA_MAIN_MODULE": f"quantlab.{name}"}):
                if os.environ.get(FULL_ERROR) == "1":
                    hydra.main(version_base="1.3", config_path=CONF, config_name=command.config)(function)()
                else:
                    _run(function, name, command.config)

        return main

    return decorate


def _run(function: Callable[[DictConfig], Any], name: str, config: str) -> None:
    """Runs the command, and prints what goes wrong itself."""
    failures: list[Exception] = []
    folders: list[Path] = []

    @functools.wraps(function)
    def task(settings: DictConfig) -> Any:
        """Keeps the error of a single run from Hydra, which would print more than the message.

        A sweep's errors go to its launcher: the other trials go on.
        """
        try:
            require_values(settings)
            return function(settings)
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            failures.append(error)
            folders.append(Path(HydraConfig.get().runtime.output_dir))

    _refuse_unknown_options(name)
    try:
        with variables({FULL_ERROR: "1"}):  # Hydra raises, where it would print and exit
            hydra.main(version_base="1.3", config_path=CONF, config_name=config)(task)()
    except (CompactHydraException, OmegaConfBaseException) as error:
        failures.append(error)
    for folder in folders:
        _remove_traces(folder)
    for failure in failures:
        if isinstance(failure, CompactHydraException | OmegaConfBaseException):
            sys.exit(one_line(failure))
        traceback.print_exception(failure)
        sys.exit(1)


def _remove_traces(folder: Path) -> None:
    """Removes the folder of a failed run, and parents left empty, if Hydra alone has written there."""
    if not {path.name for path in folder.glob("*")} <= HYDRAS_OWN:
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    (folder / ".lock").unlink(missing_ok=True)
    for path in (folder, *folder.parents):
        if Path.cwd() not in path.parents or any(path.iterdir()):
            return
        path.rmdir()


def _refuse_unknown_options(name: str) -> None:
    """Ends the program with one line where an argument is neither a setting nor an option of Hydra."""
    options = get_args_parser()
    options.prog = f"quantlab {name}"
    unknown = options.parse_known_args()[1]
    if not unknown:
        return
    if not unknown[0].startswith("-"):
        sys.exit(
            f"{unknown[0]} stands apart from the other settings: write the options (-m, ...) before them"
        )
    names = [text for action in options._actions for text in action.option_strings]
    sys.exit(f"quantlab {name} has no option {unknown[0]}{nearest(unknown[0], names, most=1)}")
