"""Commands in this process, as if they were typed: a new process would import for seconds."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

FOOTNOTE = "\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.\n"


@dataclass(frozen=True)
class Typed:
    """A working folder, and what every command there is given."""

    cwd: Path
    given: tuple[str, ...]
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def run(self, *words: str, module: str = "run", flags: Sequence[str] = (), status: int = 0) -> str:
        """What a command writes on the terminal; ``status`` is what it must end with."""
        main: Callable[[], object] = import_module(f"quantlab.{module}").main
        self.monkeypatch.chdir(self.cwd)
        self.monkeypatch.setattr(sys, "argv", [f"{module}.py", *flags, *self.given, *words])
        self.capfd.readouterr()
        handlers, level = logging.root.handlers[:], logging.root.level
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
        said = "".join(self.capfd.readouterr()).replace(FOOTNOTE, "")
        assert code == status, said
        assert "Traceback" not in said, said
        return said

    def sweep(self, *words: str, status: int = 0) -> str:
        """The same of a sweep."""
        return self.run(*words, flags=["-m"], status=status)

    @property
    def table(self) -> pd.DataFrame:
        """The table of the only sweep."""
        (path,) = self.cwd.rglob("results.csv")
        return pd.read_csv(path, keep_default_na=False, dtype=str)
