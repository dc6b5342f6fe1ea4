"""``python -m quantlab.export <trial>``: a trial's plan as a deployable folder, checked before it is there.

``<trial>`` is the folder that a trial has written, or its plan.json. The folder ``onnx`` in it (or
``--output``) gets model.onnx with the trial's key in its metadata, the tokenizer, config.json with the label
names, and export.json with what the trial's runtime (ONNX Runtime where it names none) made of it. ``--plan``
exports another plan for the same checkpoint.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from quantlab.cli.console import plain_console
from quantlab.plan.plan import QuantPlan
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.runtime import FileRuntime
from quantlab.storage.files import whole_folder, write_whole
from quantlab.storage.memo import Memo
from quantlab.trial.config import TrialConfig
from quantlab.trial.deployed import DeployedResult, deployed_scores, run_deployed, write_model
from quantlab.trial.material import Material, load_material, resolve_checkpoint
from quantlab.trial.result import RESULT

LEAST_AGREEMENT = 0.9  # less is another model; rounding alone, through many layers, changes some answers
READABLE = 0o755  # a scratch folder is its owner's alone


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial's folder holds that an export needs."""

    config: TrialConfig
    plan: QuantPlan
    tags: Mapping[str, str]
    logits: np.ndarray


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m quantlab.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trial", type=Path)
    parser.add_argument("--plan", type=Path, help="another plan.json, of the same checkpoint")
    parser.add_argument(
        "--output", type=Path, help="a folder that is not there yet; default: onnx in the trial's"
    )
    chosen = parser.parse_args(arguments)
    try:
        trial = read_trial(chosen.trial, chosen.plan)
        target = chosen.output or _folder(chosen.trial) / "onnx"
        summary = export(trial, target, runtime_of(trial.config), own_plan=chosen.plan is None)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    console = plain_console()
    console.print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    console.print(str(target))
    return 0


def runtime_of(config: TrialConfig) -> FileRuntime:
    """The runtime that a trial's export is made for, and that checks it: ONNX Runtime where the trial names
    none."""
    return config.runtime if isinstance(config.runtime, FileRuntime) else OnnxRuntime()


def read_trial(path: Path, plan: Path | None) -> Trial:
    """Reads a trial's folder. Raises ValueError or OSError where it is none, or half of one."""
    folder = _folder(path)
    for name in ("config.yaml", "plan.json", "answers.parquet", RESULT):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no finished trial: it has no {name}. A plan from elsewhere is exported with "
                f"python -m quantlab.export <trial> --plan <plan.json>"
            )
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{folder / 'config.yaml'}: {error}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{folder / 'config.yaml'} is no trial's config")
    answers = pd.read_parquet(folder / "answers.parquet")
    return Trial(
        config=built({**config, "_target_": "quantlab.trial.config.TrialConfig"}),
        plan=_read_plan(plan or folder / "plan.json"),
        tags=json.loads((folder / RESULT).read_text(encoding="utf-8"))["tags"],
        logits=answers.filter(regex=r"^logit_\d+$").to_numpy(),
    )


def built(tree: Any) -> Any:
    """What a part of a trial's config.yaml describes, with quantlab's own components and nothing else built.

    Raises ValueError where it names anything else: the file may come from elsewhere, and a class of somebody
    else's may do anything when it is built.
    """
    if isinstance(tree, list):
        return [built(part) for part in tree]
    if not isinstance(tree, Mapping):
        return tree
    values = {name: built(part) for name, part in tree.items() if name != "_target_"}
    if "_target_" not in tree:
        return values
    try:
        return _component(str(tree["_target_"]))(**values)
    except TypeError as error:  # a field that the component does not have
        raise ValueError(f"config.yaml: {error}") from error


def _component(target: str) -> type:
    module, _, name = target.rpartition(".")
    if module.startswith("quantlab."):
        try:
            found = vars(import_module(module)).get(name)
        except ImportError:
            found = None
        if isinstance(found, type) and is_dataclass(found) and found.__module__ == module:
            return found
    raise ValueError(f"config.yaml names {target}: an export builds quantlab's own components only")


def export(trial: Trial, target: Path, runtime: FileRuntime, own_plan: bool) -> dict[str, Any]:
    """Writes the folder, and only whole: ``runtime`` has answered the trial's rows with it. Returns what it
    found.

    Raises ValueError where the checkpoint is not the trial's, the plan has no equivalent, or the answers are
    others.
    """
    if target.exists():
        raise ValueError(f"{target} is there already: name another --output, or remove it")
    runtime.check()
    config, memo = trial.config, Memo()
    checkpoint = resolve_checkpoint(config.model, config.task, memo)
    fingerprint = checkpoint.fingerprint
    if fingerprint != trial.tags["checkpoint_fingerprint"]:
        raise ValueError(
            f"{checkpoint.tags['checkpoint']} is not the checkpoint that the trial ran on: its "
            f"fingerprint is "
            f"{fingerprint[:12]}, the trial's {trial.tags['checkpoint_fingerprint'][:12]}"
        )
    material = load_material(config.model, config.task, config.evaluation, memo)
    notes = {
        "quantlab_key": trial.tags["key"],
        "quantlab_plan": trial.plan.fingerprint,
        "quantlab_checkpoint": fingerprint,
    }
    with whole_folder(target) as scratch:
        scratch.chmod(READABLE)
        names = material.batches[0].inputs
        path = write_model(runtime, material.loaded, trial.plan, names, scratch, notes)
        found = run_deployed(runtime, path, material.batches, material.loaded.label_columns)
        summary = summarized(trial, material, found, runtime)
        agreement = summary.get("agreement_deployed", 1.0)
        if own_plan and agreement < LEAST_AGREEMENT:
            raise ValueError(
                f"{runtime.describe()} gives the trial's answer on {agreement:.1%} of the rows only: "
                f"nothing exported"
            )
        material.loaded.tokenizer.save_pretrained(scratch)
        material.model.config.save_pretrained(scratch)
        write_whole(scratch / "export.json", json.dumps({**summary, **notes}, indent=2))
    return summary


def summarized(
    trial: Trial, material: Material, found: DeployedResult, runtime: FileRuntime
) -> dict[str, Any]:
    """What the runtime made of the file, beside the trial's own answers."""
    task, labels = trial.config.task, material.rows.labels
    primary = task.metrics[0]
    own = deployed_scores(task, labels, trial.logits, trial.logits)[f"{primary}_deployed"]
    return {
        primary: own,
        **deployed_scores(task, labels, found.logits, trial.logits),
        "size_onnx_bytes": found.size_bytes,
        "runtime": runtime.describe(),
        "arithmetic": found.kind,
        "products": str(found.products),
        "saturates": found.saturates,
        "float_sites": ", ".join(item.site for item in trial.plan.activations if item.grid.bits == 16)
        or "none",
    }


def _read_plan(path: Path) -> QuantPlan:
    try:
        return QuantPlan.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _folder(path: Path) -> Path:
    return path.parent if path.name == "plan.json" else path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
