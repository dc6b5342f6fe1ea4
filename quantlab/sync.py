"""``python -m quantlab.sync [folders]``: sends what MLflow has not got yet, once.

Looks in ``outputs`` and ``multirun`` of the working folder unless folders are named. A record names its store
without a password: that comes from MLFLOW_TRACKING_PASSWORD, from PGPASSWORD for Postgres, or from
``--tracking-uri``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quantlab.cli.commands import COMMANDS, parser
from quantlab.cli.secrets import without_password
from quantlab.tracking.address import store_uri

FOLDERS = ("outputs", "multirun")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where something could not be sent."""
    arguments_of = parser(COMMANDS["sync"])
    arguments_of.add_argument(
        "folders", nargs="*", type=Path, default=[Path(name) for name in FOLDERS if Path(name).is_dir()]
    )
    arguments_of.add_argument(
        "--tracking-uri", type=_uri, default=[], help="a store with its password", action="append"
    )
    options = arguments_of.parse_args(arguments)
    if missing := [folder for folder in options.folders if not folder.is_dir()]:
        arguments_of.error(f"no such folder: {', '.join(map(str, missing))}")

    # Imported here, so that help and errors of the command line do not wait for torch.
    from quantlab.tracking.mlflow_steps import abandoned, attempt, deliver
    from quantlab.tracking.record import unsent

    given = {without_password(uri): uri for uri in options.tracking_uri}
    results = [
        attempt(deliver, abandoned(record), folder, given.get(record.uri, record.uri))[1]
        for place in options.folders
        for folder, record in unsent(place)
    ]
    problems = [problem for problem in results if problem]
    print(f"{len(results) - len(problems)} runs sent, {len(problems)} not")
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _uri(text: str) -> str:
    try:
        return store_uri(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
