"""``python -m quantlab.report <sweep folder | trial folders | MLflow run ids>``: one page about trials of one
kind.

A sweep's folder is ``multirun/sweeps/<name>``, a trial's any that holds a ``result.json``.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from quantlab.reporting.outlier_analysis import analysis_of
from quantlab.reporting.recommendation import MAX_DROP
from quantlab.reporting.sources import from_folders
from quantlab.reporting.writing import FORMATS, write_report
from quantlab.tracking.download import fetch

RUN_ID = re.compile("[0-9a-f]{32}")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where there is nothing to report, or nowhere to write it."""
    options = parse_arguments(arguments)
    out = options.out or Path(f"report.{options.format}")
    try:
        if out.exists() and not options.force:
            raise FileExistsError(
                f"{out} exists and is kept; --force overwrites it, --out names another file"
            )
        with TemporaryDirectory(prefix="quantlab-report-") as scratch:
            study = from_folders(
                [resolve_source(name, options.tracking_uri, Path(scratch)) for name in options.what]
            )
            write_report(
                study, analysis_of(study, options.analysis), out, options.format, max_drop=options.max_drop
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


def resolve_source(name: str, uri: str, scratch: Path) -> Path:
    """A folder as it is, or what an MLflow run has, downloaded."""
    if Path(name).is_dir():
        return Path(name)
    if not RUN_ID.fullmatch(name):
        raise ValueError(f"{name!r} is neither a folder nor the id of an MLflow run (32 hexadecimal digits)")
    return fetch(uri, name, scratch)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m quantlab.report", description=__doc__)
    parser.add_argument("what", nargs="+", help="a sweep's folder, trials' folders, or ids of MLflow runs")
    parser.add_argument("--out", type=Path, help="the file to write; report.<format> by default")
    parser.add_argument("--format", choices=FORMATS, default="html", help="html: the page; others: its table")
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    parser.add_argument(
        "--max-drop", type=float, default=MAX_DROP, help="points that may be lost against FP32 (0.5)"
    )
    parser.add_argument(
        "--analysis", type=Path, help="a folder of quantlab.outliers; by default the trials' newest"
    )
    parser.add_argument(
        "--tracking-uri", default=str(Path.cwd() / "mlflow.db"), help="where runs are; ./mlflow.db by default"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
