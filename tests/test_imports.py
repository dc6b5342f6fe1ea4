"""Imports point one way, between modules and between folders."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from quantlab.storage.files import CODE, NO_NUMBERS

COMMANDS = ("run", "search", "sensitivity", "outliers", "report", "export", "finetune", "sync", "list")
# Folders from the bottom up. A folder imports from rows above its own row only, so no two import each other.
LAYERS = (
    ("hydra_plugins", "storage", "config"),
    ("cli", "machine", "kernels"),
    ("quant", "tasks"),
    ("network",),
    ("plan",),
    ("engines",),
    ("calibration", "runtimes"),
    ("evaluation", "methods", "profiling", "rounding", "splits", "transforms"),
    ("training",),
    ("alarms",),
    ("trial",),
    ("tracking",),
    ("results",),
    ("reporting",),
    ("sweeping",),
    ("searching",),
    ("analysis", "api"),
    COMMANDS,
    ("__main__",),
    ("quantlab",),  # the package itself imports the names that it offers at their first use only
)
COMMANDS_ONLY = {"hydra", "omegaconf", "mlflow", "optuna"}
# Seconds of imports that a wrong override has nothing to do with, and where they would come in first.
HEAVY = {
    "datasets",
    "matplotlib",
    "mlflow",
    "optuna",
    "plotly",
    "scipy.optimize",
    "scipy.stats",
    "statsmodels",
    "transformers",
    "transformers.activations",
    "transformers.masking_utils",
}
EARLY = (
    "quantlab.run",
    "quantlab.sweeping.sweeper",
    "quantlab.sweeping.run_config",
    "quantlab.methods.*",
    "quantlab.tasks.*",
    "quantlab.tracking.*",
    "quantlab.network.models",
    "quantlab.calibration.estimators",
    "quantlab.sweeping.views",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(CODE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PLUGINS = CODE.parent / "hydra_plugins"
MODULES = {
    module_name(path): ast.parse(path.read_text())
    for root in (CODE, PLUGINS)
    for path in sorted(root.rglob("*.py"))
}


def imported(tree: ast.AST, everywhere: bool = True) -> Iterator[str]:
    """Full names of what a module imports; without ``everywhere``, only what importing the module itself
    imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)
        elif everywhere or not (is_type_checking(node) or isinstance(node, ast.FunctionDef)):
            yield from imported(node, everywhere)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def folder(module: str) -> str:
    """The folder under quantlab that a module lies in; of a command its own name; or the package itself."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if rest and package == "quantlab" else package


def layer(module: str) -> int:
    rows = [index for index, names in enumerate(LAYERS) if folder(module) in names]
    assert len(rows) == 1, f"{module} has no layer, or several, in tests/test_imports.py"
    return rows[0]


def ours(module: str) -> set[str]:
    """The modules of quantlab that a module imports anywhere."""
    return {name for name in imported(MODULES[module]) if name.split(".")[0] in ("quantlab", "hydra_plugins")}


def roots(module: str) -> set[str]:
    """The libraries that a module imports anywhere."""
    libraries = {name.split(".")[0] for name in imported(MODULES[module])}
    return libraries - {"quantlab", "hydra_plugins"} - set(sys.stdlib_module_names)


def reached(module: str) -> dict[str, str]:
    """Everything that importing a module imports of quantlab, each with the module that asks for it."""
    found, waiting = {module: ""}, [module]
    while waiting:
        asking = waiting.pop()
        for name in imported(MODULES[asking], everywhere=False):
            if name in MODULES and name not in found:
                found[name] = asking
                waiting.append(name)
    return found


def test_modules_are_found() -> None:
    assert {"quantlab.trial.trial", "quantlab.quant.grid", "quantlab.tasks.task"} <= MODULES.keys()
    assert "quantlab.quant.sketch" in ours("quantlab.calibration.estimators")
    assert "quantlab.quant.ranges" in ours(
        "quantlab.calibration.estimators"
    )  # from quantlab.quant import ranges
    assert "mlflow" in roots("quantlab.tracking.mlflow_store")
    assert "mlflow" not in {
        name.split(".")[0] for name in imported(MODULES["quantlab.tracking.mlflow_store"], False)
    }


def test_imports_point_down() -> None:
    """A folder imports from lower layers only. So no two folders import each other."""
    upwards = {
        f"{module} -> {name}"
        for module in MODULES
        for name in ours(module)
        if folder(name) != folder(module) and layer(name) >= layer(module)
    }
    assert not upwards


def test_the_picture_of_the_folders_is_the_imports() -> None:
    """It has every arrow but those that follow from others. The commands are one box."""
    arrows: dict[str, set[str]] = {}
    for module in MODULES:
        start, *ends = (
            "commands" if folder(name) in (*COMMANDS, "__main__") else folder(name)
            for name in (module, *ours(module))
        )
        arrows.setdefault(start, set()).update(set(ends) - {start, "quantlab"})

    def reached_from(start: str) -> set[str]:
        return set().union(arrows[start], *(reached_from(end) for end in arrows[start]))

    drawn = {
        f"{start} --> {end}"
        for start, ends in arrows.items()
        for end in ends
        if not any(end in reached_from(other) for other in ends)
    }
    picture = (CODE.parent / "docs" / "architecture.md").read_text()
    assert {line.strip() for line in picture.splitlines() if " --> " in line} == drawn


def test_every_layer_exists() -> None:
    assert {name for names in LAYERS for name in names} == {folder(module) for module in MODULES}


def test_what_one_can_type_lies_at_the_top() -> None:
    assert {path.stem for path in CODE.glob("*.py")} == {"__init__", "__main__", *COMMANDS}


def test_no_cycles() -> None:
    """Modules can be sorted so that each comes after all that it imports."""
    waiting = {module: ours(module) - {module} for module in MODULES}
    while waiting:
        ready = [module for module, needs in waiting.items() if not needs & waiting.keys()]
        assert ready, f"an import cycle runs through {sorted(waiting)}"
        for module in ready:
            del waiting[module]


def test_tensor_math_needs_no_model() -> None:
    for module in MODULES:
        if folder(module) in ("quant", "kernels"):
            assert roots(module) <= {"torch", "numpy", "scipy"}, module


def test_a_trial_knows_nothing_of_the_command_line() -> None:
    reaching = {
        f"{' <- '.join(path(module))}: {name}"
        for module in reached("quantlab.trial.trial")
        for name in {name.split(".")[0] for name in imported(MODULES[module], everywhere=False)}
        & COMMANDS_ONLY
    }
    assert not reaching


def test_a_wrong_override_does_not_wait_for_what_only_a_trial_needs() -> None:
    early = [module for module in MODULES if any(fnmatchcase(module, pattern) for pattern in EARLY)]
    waited_for = {
        f"{module}: {name}"
        for start in early
        for module in reached(start)
        for name in imported(MODULES[module], everywhere=False)
        if name in HEAVY or name.split(".")[0] in HEAVY - {"transformers"}
    }
    assert not waited_for


def test_help_and_the_command_line_wait_for_no_library() -> None:
    """Importing a command imports Hydra and YAML at most."""
    cheap = {"hydra", "omegaconf", "yaml"}
    waited_for = {
        f"{command}: {name}"
        for command in ("__main__", *(set(COMMANDS) - {"export", "sensitivity"}))
        for module in reached(f"quantlab.{command}")
        for name in imported(MODULES[module], everywhere=False)
        if name.split(".")[0] not in {"quantlab", "hydra_plugins", *cheap, *sys.stdlib_module_names}
    }
    assert not waited_for


def test_what_hydra_finds_wrong_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "quantlab.run", "method=pge"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    imports = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")
    }
    assert (
        done.returncode == 1
        and "there is no method=pge (did you mean 'peg'?)" in done.stderr
        and "hydra" in imports
    )
    assert not imports & (HEAVY | {"numpy", "torch", "pandas"})


def path(module: str) -> list[str]:
    """How importing quantlab.trial.trial comes to a module."""
    asked_by = reached("quantlab.trial.trial")
    steps = [module]
    while asked_by[steps[-1]]:
        steps.append(asked_by[steps[-1]])
    return steps


def test_only_the_tracker_knows_mlflow() -> None:
    names = ("mlflow", "mlflow_pages", "mlflow_steps", "mlflow_store", "download", "opening")
    knowing = {f"quantlab.tracking.{name}" for name in names}
    assert {module for module in MODULES if "mlflow" in roots(module)} == knowing


def test_what_is_left_out_of_keys_is_what_lies_above_a_trial() -> None:
    """And what shows progress: a trial imports it, and it decides no number. What trains decides a
    checkpoint, whose fingerprint is in the key. The package itself is in every key: it sets how threads wait.
    """
    above = {name for names in LAYERS[layer("quantlab.trial.trial") + 1 :] for name in names} - {"quantlab"}
    assert {name.removesuffix(".py") for name in NO_NUMBERS} == above | {"cli", "training"}
    left_out = {module for module in reached("quantlab.trial.trial") if folder(module) in above | {"cli"}}
    assert left_out == {"quantlab.cli.progress"}


def test_a_wheel_has_every_folder() -> None:
    listed = tomllib.loads((CODE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(file.parent.relative_to(CODE.parent).parts)
        for top in (CODE, CODE.parent / "hydra_plugins")
        for file in top.rglob("*.py")
    }
    assert set(listed) == folders | {"quantlab.conf", "quantlab.sweeps"}


@pytest.mark.parametrize(
    "script",
    sorted([*CODE.parent.glob("docs/*.py"), *CODE.parent.glob("tests/benchmarks/*.py")]),
    ids=lambda script: script.stem,
)
def test_scripts_that_no_test_runs_import_names_that_exist(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "quantlab":
            module = importlib.import_module(node.module)
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not [name for name in missing if f"{node.module}.{name}" not in MODULES]
