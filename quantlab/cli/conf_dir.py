"""The folders of configs, of sweeps, and of methods that searches have found."""

from pathlib import Path


def _data_dir(name: str) -> Path:
    """``quantlab/<name>`` of an installed wheel, else the folder beside the package in the repository."""
    package = Path(__file__).parents[1]
    inside, beside = package / name, package.parent / name
    return inside if inside.is_dir() else beside


CONF = str(_data_dir("conf"))  # as Hydra takes it
SWEEPS = _data_dir("sweeps")
FOUND_METHODS = Path("conf") / "method" / "found"  # of the working folder: searches write their answers there
