"""``quantlab list methods``: each choice of a slot with a sentence and its file; sweeps; a model's sites."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from quantlab.cli.commands import COMMANDS, choices, columns, parser, sweep_files
from quantlab.cli.conf_dir import CONF, FOUND_METHODS
from quantlab.cli.signals import printed
from quantlab.config.checks import nearest


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where there is nothing of that name, or no such model; else that of
    :func:`printed`."""
    options = parser(COMMANDS["list"])
    options.add_argument("what", help=f"{', '.join(_slots())}, sweeps, searches, or sites")
    options.add_argument("settings", nargs="*", help="of the model, for sites: model=hf model.path=<folder>")
    options.add_argument("--config-dir", type=Path, help="a folder with choices and sweeps of your own")
    chosen = options.parse_args(arguments)
    try:
        if chosen.what == "sites":
            lines = _sites(chosen.settings, chosen.config_dir)
        else:
            lines = columns(
                [(path.stem, f"{sentence(path)} ({path})") for path in _files(chosen.what, chosen.config_dir)]
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return printed("\n".join(lines))


def sentence(path: Path) -> str:
    """The first sentence of the comment that a YAML file begins with; empty where it begins with none."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = " ".join(comment)
    end = re.search(r"(?<!\bal)[.?](?= )", text)  # "et al." ends no sentence
    return text[: end.end()] if end else text


def _slots() -> list[str]:
    return sorted(path.name for path in Path(CONF).iterdir() if path.is_dir() and choices(path.name))


def _files(what: str, own: Path | None) -> list[Path]:
    """The files of a slot (``method`` or ``methods``), of ``sweeps`` or of ``searches``."""
    if what in ("sweeps", "searches"):
        mine = sorted((own / "sweeps").glob("*.yaml")) if own else []
        return [*sweep_files("sweep" if what == "sweeps" else "search"), *mine]
    slots = _slots()
    slot = what if what in slots else what.removesuffix("s")
    if slot not in slots:
        allowed = [*slots, "sweeps", "searches", "sites"]
        raise ValueError(f"there is nothing to list of {what}{nearest(what, allowed)}; {', '.join(allowed)}")
    files = [Path(CONF) / slot / f"{name}.yaml" for name in choices(slot)]
    found = sorted(FOUND_METHODS.glob("*.yaml")) if slot == "method" else []
    return files + found + (sorted((own / slot).glob("*.yaml")) if own else [])


def _sites(settings: list[str], own: Path | None) -> list[str]:
    """The sites of the model that the settings choose. Raises ValueError or OSError where there is none."""
    # Imported here, so that lists of files do not wait for torch.
    from hydra import compose, initialize_config_dir
    from hydra.errors import CompactHydraException
    from hydra.utils import instantiate

    from quantlab.cli.errors import compact_errors, one_line, require_values
    from quantlab.network.architecture import all_sites, family_of, skeleton_of
    from quantlab.network.checkpoint import read_config
    from quantlab.network.models import FineTuned

    search_path = [f"hydra.searchpath=[file://{own.absolute()}]"] if own else []
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            composed = compose("finetune", ["tracking=off", *settings, *search_path])
        require_values(composed)
        with compact_errors():
            config = instantiate(composed)
            model, task = config.model, config.task
            folder = model.base.folder() if isinstance(model, FineTuned) else model.folder(task, task.load)
            skeleton = skeleton_of(read_config(folder), task.head)
    except CompactHydraException as error:
        raise ValueError(one_line(error)) from error
    sites = [f"{site.name:24} {site.channels:6} channels" for site in all_sites(skeleton)]
    missing = family_of(skeleton).unreachable
    return sites + [f"{f'*.{role}':24} {'none':>15}: {reason}" for role, reason in missing.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
