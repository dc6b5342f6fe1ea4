"""The key of a trial: a digest of everything that decides its numbers. Equal keys mean equal numbers."""

import inspect
import os
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from quantlab.evaluation.answering import DECIDED
from quantlab.machine.provenance import device_name, processors
from quantlab.network.architecture import foreign_table
from quantlab.profiling.profile import NoProfile
from quantlab.runtimes.runtime import FileRuntime
from quantlab.storage.files import code_digest, digest, file_digest
from quantlab.storage.memo import Memo
from quantlab.trial.config import TrialConfig, plain_config
from quantlab.trial.environment import deciding_environment
from quantlab.trial.material import resolve_checkpoint, select_rows
from quantlab.trial.result import plain_data

OWN = "quantlab."
# Settings that decide no number once fingerprints and environment are in the key: where files lie, which rows
# are answered (the data's fingerprint covers them), what the trial runs on. Held-out rows are answered too.
NOT_DECIDING = {
    "model": ("path", "revision", "name", "base", "recipe", "device"),
    "task": ("data", "data_dir", "hub", "revision", "calibration"),
    "evaluation": ("limit", "order", "seed", "holdout"),
}


def trial_key(config: TrialConfig, memo: Memo) -> str:
    """Returns the key of a trial without running it. Reads files; loads no weight."""
    runtime = config.runtime
    packages = ("onnx", "onnxscript", runtime.package) if isinstance(runtime, FileRuntime) else ()
    checkpoint = resolve_checkpoint(config.trained, config.task, memo)
    reference = resolve_checkpoint(config.model, config.task, memo).fingerprint
    table = foreign_table(checkpoint.skeleton.config)
    return key_of(
        plain_config(config),
        "/".join(dict.fromkeys((checkpoint.fingerprint, reference))),
        select_rows(config.trained, config.task, config.evaluation, memo).fingerprint,
        config.trained.torch_device(),
        {f"version.{package}": version(package) for package in packages}
        | ({} if table is None else {"site_table": file_digest(table)}),
    )


def trial_timing_key(config: TrialConfig) -> str:
    """Returns a digest of what decides a trial's latencies besides its key; empty if nothing is timed.

    It covers the profile's settings, the processor, the number of processors and of threads. It leaves out
    the machine's name: containers and cluster nodes get new ones.
    """
    if isinstance(config.profile, NoProfile):
        return ""
    return digest(
        [
            repr(plain_data(config.profile)),
            device_name(config.trained.torch_device()),
            str(processors()),
            str(torch.get_num_threads()),
            os.environ.get("OMP_WAIT_POLICY", ""),
        ]
    )


def key_of(
    settings: Mapping[str, Any],
    checkpoint: str,
    data: str,
    device: torch.device,
    versions: Mapping[str, str],
) -> str:
    """Returns the SHA-256 of everything that decides a trial's numbers.

    ``settings`` is the config as plain data; ``checkpoint`` and ``data`` are fingerprints of files and rows,
    ``checkpoint`` of two where FP32's answers are another one's;
    ``versions`` are those of libraries that only this trial needs. The digest also covers quantlab's code,
    and the source file of every component from elsewhere.
    """
    deciding = deciding_settings(settings)
    foreign = [
        _source_digest(target) for target in sorted(set(_targets(deciding))) if not target.startswith(OWN)
    ]
    environment = sorted({**deciding_environment(device), **versions}.items())
    return digest([repr(deciding), checkpoint, data, code_digest(), repr(environment), *foreign])


def deciding_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide a trial's numbers: without paths, profile and device.

    The class of a model of quantlab's own is left out as well: all of them load what the checkpoint's
    fingerprint names.
    """
    kept = {
        part: {name: value for name, value in fields.items() if name not in _not_deciding(part, fields)}
        if isinstance(fields, Mapping)
        else fields
        for part, fields in settings.items()
        if part not in ("profile", "training")  # the checkpoint's fingerprint covers what was trained
    }
    if str(kept.get("model", {}).get("_target_", "")).startswith(OWN):
        del kept["model"]["_target_"]
    return kept


def _not_deciding(part: str, fields: Mapping[str, Any]) -> Collection[str]:
    names = NOT_DECIDING.get(part, ())
    if part == "evaluation" and fields.get("until") == DECIDED:  # the seed orders the answers
        return set(names) - {"seed"}
    return names


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        yield from (str(value) for name, value in tree.items() if name == "_target_")
        yield from (target for value in tree.values() for target in _targets(value))
    elif isinstance(tree, list):
        yield from (target for value in tree for target in _targets(value))


@cache
def _source_digest(target: str) -> str:
    module, _, _ = target.rpartition(".")
    return file_digest(Path(inspect.getfile(import_module(module))))
