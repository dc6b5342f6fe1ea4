"""``python -m quantlab.report <folders | MLflow run ids>``: one HTML page about finished trials.

A folder is a sweep's (``multirun/sweeps/<name>``), a search's (``multirun/searches/<name>``) or a trial's
(any that holds a ``result.json``). Trials on several checkpoints or tasks stand side by side on one page.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from quantlab.cli.commands import COMMANDS, parser
from quantlab.reporting.options import FORMATS, MAX_DROP

RUN_ID = re.compile("[0-9a-f]{32}")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where there is nothing to report, or nowhere to write it."""
    options = parse_arguments(arguments)
    try:
        check_sources(options.what)
        out = output_file(options.output, options.what, options.format, overwrite=options.force)
        # Imported here, so that help and errors of the command line do not wait for pandas and torch.
        from quantlab.reporting.outlier_analysis import analysis_of
        from quantlab.reporting.sources import from_folders
        from quantlab.reporting.writing import write_page, write_report

        with TemporaryDirectory(prefix="quantlab-report-") as scratch:
            folders = [resolve_source(name, options.tracking_uri, Path(scratch)) for name in options.what]
            if options.format == "html":
                write_page(folders, options.analysis, out, max_drop=options.max_drop)
            else:
                study = from_folders(folders)
                analysis = analysis_of(study, options.analysis)
                write_report(study, analysis, out, options.format, max_drop=options.max_drop)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


def check_sources(names: Sequence[str]) -> None:
    """Raises ValueError for the first name that is neither a folder nor the id of an MLflow run."""
    for name in names:
        if not Path(name).is_dir() and not RUN_ID.fullmatch(name):
            raise ValueError(
                f"{name!r} is neither a folder nor the id of an MLflow run (32 hexadecimal digits)"
            )


def output_file(chosen: Path | None, names: Sequence[str], format: str, overwrite: bool) -> Path:
    """The file to write, as an absolute path.

    By default it is ``report.<format>`` in the one folder that is reported on, and replaces an older report.
    For several folders and for MLflow runs it lies in the working directory.
    Raises FileExistsError where another file exists and may not be overwritten.
    """
    name = f"report.{format}"
    if chosen is None and len(names) == 1 and Path(names[0]).is_dir():
        return (Path(names[0]) / name).absolute()
    out = (chosen or Path(name)).absolute()
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists and is kept; --force overwrites it, --output names another file")
    return out


def resolve_source(name: str, uri: str, scratch: Path) -> Path:
    """The folder itself, or the files of an MLflow run, downloaded below ``scratch``."""
    from quantlab.tracking.download import fetch

    return Path(name) if Path(name).is_dir() else fetch(uri, name, scratch)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    options = parser(COMMANDS["report"])
    options.add_argument("what", nargs="+", help="folders of sweeps, of trials, of a search; or run ids")
    options.add_argument(
        "--output", "--out", type=Path, help="the file to write; report.<format> in the folder by default"
    )
    options.add_argument(
        "--format", choices=FORMATS, default="html", help="html: the page; others: its table"
    )
    options.add_argument("--force", action="store_true", help="overwrite a file that exists")
    options.add_argument(
        "--max-drop",
        type=float,
        default=MAX_DROP,
        help="points, of a perplexity percent, that may be lost against FP32 (0.5)",
    )
    options.add_argument(
        "--analysis", type=Path, help="a folder of quantlab.outliers; by default the trials' newest"
    )
    options.add_argument(
        "--tracking-uri", default=str(Path.cwd() / "mlflow.db"), help="where runs are; ./mlflow.db by default"
    )
    return options.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
