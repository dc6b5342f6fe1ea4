"""``python -m quantlab.sync [folders]``: sends what MLflow has not got yet, once.

Looks in ``outputs`` and ``multirun`` of the working folder unless folders are named.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quantlab.tracking.mlflow import abandoned, attempt, deliver
from quantlab.tracking.record import unsent

FOLDERS = ("outputs", "multirun")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where something could not be sent."""
    parser = argparse.ArgumentParser(prog="python -m quantlab.sync", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path(name) for name in FOLDERS if Path(name).is_dir()]
    )
    folders = parser.parse_args(arguments).folders
    if missing := [folder for folder in folders if not folder.is_dir()]:
        parser.error(f"no such folder: {', '.join(map(str, missing))}")
    found = [item for folder in folders for item in unsent(folder)]
    problems = [problem for folder, record in found if (problem := attempt(deliver, abandoned(record), folder)[1])]
    print(f"{len(found) - len(problems)} runs sent, {len(problems)} not")
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
