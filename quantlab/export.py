"""``python -m quantlab.export <trial>``: a trial's plan as a deployable folder, checked before it is there.

``<trial>`` is the folder that a trial has written, or its plan.json. The folder ``onnx`` in it (or
``--output``) gets model.onnx with the trial's key in its metadata, the tokenizer, config.json with the label
names, and export.json with what the trial's runtime (ONNX Runtime where it names none) made of it. ``--plan``
exports another plan for the same checkpoint. ``--format compressed-tensors`` writes a decoder's weights as
vLLM loads them instead, into the folder ``compressed-tensors``.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from quantlab.cli.console import plain_console
from quantlab.network.models import ResolvedCheckpoint
from quantlab.plan.plan import QuantPlan
from quantlab.results.saved import SavedTrial, load_plan, load_trial
from quantlab.runtimes.compressed import FORMAT as COMPRESSED
from quantlab.runtimes.compressed import WEIGHTS, write_compressed
from quantlab.runtimes.onnxruntime import OnnxRuntime
from quantlab.runtimes.runtime import FileRuntime
from quantlab.storage.files import whole_folder, write_whole
from quantlab.storage.memo import Memo
from quantlab.tasks.heads import TOKENS
from quantlab.trial.config import TrialConfig
from quantlab.trial.deployed import MODEL, DeployedResult, deployed_scores, run_deployed, write_model
from quantlab.trial.material import Material, load_material, resolve_checkpoint

ONNX = "onnx"
LEAST_AGREEMENT = 0.9  # less is another model; rounding alone, through many layers, changes some answers
READABLE = 0o755  # a scratch folder is its owner's alone


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
    parser.add_argument("--format", choices=(ONNX, COMPRESSED), default=ONNX)
    chosen = parser.parse_args(arguments)
    try:
        trial = load_trial(chosen.trial)
        config = built({**trial.config, "_target_": "quantlab.trial.config.TrialConfig"})
        target = chosen.output or trial.folder / chosen.format
        other = load_plan(chosen.plan) if chosen.plan else None
        if chosen.format == ONNX:
            runtime = runtime_of(config)
            summary, line = export(trial, config, other, target, runtime), runtime.python_line
        else:
            summary, line = export_compressed(trial, config, other or trial.plan, target), vllm_line
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    console = plain_console()
    console.print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    console.print(str(target))
    console.print(f"in Python: {line(target.absolute() / MODEL)}")
    return 0


def runtime_of(config: TrialConfig) -> FileRuntime:
    """The runtime that a trial's export is made for, and that checks it: ONNX Runtime where the trial names
    none."""
    return config.runtime if isinstance(config.runtime, FileRuntime) else OnnxRuntime()


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


def export(
    trial: SavedTrial, config: TrialConfig, other: QuantPlan | None, target: Path, runtime: FileRuntime
) -> dict[str, Any]:
    """Writes the folder of the trial's plan, or of an ``other`` one for the same checkpoint: whole or not at
    all. Before it is there, ``runtime`` answers the trial's rows with it. Returns what came of that.

    Raises ValueError where the checkpoint is not the trial's, the plan has no equivalent, or the answers are
    others.
    """
    _check_free(target)
    runtime.check()
    memo, plan = Memo(), other or trial.plan
    checkpoint = _checkpoint(trial, config, memo)
    material = load_material(config.trained, config.task, config.evaluation, memo)
    notes = _notes(trial, plan, checkpoint)
    with whole_folder(target) as scratch:
        scratch.chmod(READABLE)
        names = material.batches[0].inputs
        path = write_model(runtime, material.loaded, plan, names, scratch, notes)
        found = run_deployed(runtime, path, material.batches, material.loaded.label_columns)
        summary = summarized(trial, plan, material, found, runtime)
        agreement = summary.get("agreement_deployed", 1.0)
        if other is None and agreement < LEAST_AGREEMENT:
            raise ValueError(
                f"{runtime.describe()} gives the trial's answer on {agreement:.1%} of the rows only: "
                f"nothing exported"
            )
        material.loaded.processor.save_pretrained(scratch)
        material.model.config.save_pretrained(scratch)
        write_whole(scratch / "export.json", json.dumps({**summary, **notes}, indent=2))
    return summary


def export_compressed(
    trial: SavedTrial, config: TrialConfig, plan: QuantPlan, target: Path
) -> dict[str, Any]:
    """Writes the folder of a plan for the trial's decoder as compressed-tensors: whole or not at all. Returns
    what is in it.

    Raises ValueError where the checkpoint is not the trial's or no decoder, and for what the format cannot
    say.
    """
    _check_free(target)
    memo = Memo()
    checkpoint = _checkpoint(trial, config, memo)
    if checkpoint.head != TOKENS:
        raise ValueError(f"{COMPRESSED} is for decoders: the trial's checkpoint answers {checkpoint.head}")
    material = load_material(config.trained, config.task, config.evaluation, memo)
    with whole_folder(target) as scratch:
        scratch.chmod(READABLE)
        schemes = write_compressed(material.model, plan, scratch)
        material.loaded.processor.save_pretrained(scratch)
        linears = sum(isinstance(module, nn.Linear) for module in material.model.modules())
        summary = {
            "format": ", ".join(sorted({scheme.format for scheme in schemes.values()})),
            "linears": f"{len(schemes)} of {linears} in integers",
            "size_bytes": (scratch / WEIGHTS).stat().st_size,
        }
        notes = _notes(trial, plan, checkpoint)
        write_whole(scratch / "export.json", json.dumps({**summary, **notes}, indent=2))
    return summary


def vllm_line(path: Path) -> str:
    """A line of Python that loads the folder of a file with vLLM, as the variable ``model``."""
    return f"from vllm import LLM; model = LLM({str(path.parent)!r})"


def _check_free(target: Path) -> None:
    if target.exists():
        raise ValueError(f"{target} is there already: name another --output, or remove it")


def _checkpoint(trial: SavedTrial, config: TrialConfig, memo: Memo) -> ResolvedCheckpoint:
    """The checkpoint that the trial ran on. Raises ValueError if it is another one by now."""
    checkpoint = resolve_checkpoint(config.trained, config.task, memo)
    if checkpoint.fingerprint != trial.tags["checkpoint_fingerprint"]:
        raise ValueError(
            f"{checkpoint.tags['checkpoint']} is not the checkpoint that the trial ran on: its fingerprint "
            f"is {checkpoint.fingerprint[:12]}, the trial's {trial.tags['checkpoint_fingerprint'][:12]}"
        )
    return checkpoint


def _notes(trial: SavedTrial, plan: QuantPlan, checkpoint: ResolvedCheckpoint) -> dict[str, str]:
    return {
        "quantlab_key": trial.tags["key"],
        "quantlab_plan": plan.fingerprint,
        "quantlab_checkpoint": checkpoint.fingerprint,
    }


def summarized(
    trial: SavedTrial, plan: QuantPlan, material: Material, found: DeployedResult, runtime: FileRuntime
) -> dict[str, Any]:
    """What the runtime made of the file, beside the trial's own answers."""
    task, own, answered = material.task, trial.answers.logits, trial.answers.rows
    rows = slice(None) if answered is None else answered
    labels, deployed = material.rows.labels[rows], found.logits[rows]
    primary = task.metrics[0]
    return {
        primary: deployed_scores(task, labels, own, own)[f"{primary}_deployed"],
        **deployed_scores(task, labels, deployed, own),
        "size_onnx_bytes": found.size_bytes,
        "runtime": runtime.describe(),
        "arithmetic": found.kind,
        "products": str(found.products),
        "saturates": found.saturates,
        "float_sites": ", ".join(item.site for item in plan.activations if item.grid.bits == 16) or "none",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
