"""Where the configs lie."""

from pathlib import Path


def _conf_dir() -> str:
    """``quantlab/conf`` of an installed wheel, else the ``conf`` folder beside the package in the
    repository."""
    package = Path(__file__).parents[1]
    inside, beside = package / "conf", package.parent / "conf"
    return str(inside if inside.is_dir() else beside)


CONF = _conf_dir()
