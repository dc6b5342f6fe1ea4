"""What names a trial: settings, checkpoint, data, code and environment. Equal keys, equal numbers."""

import inspect
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from quantlab.engines.kernel_choice import arithmetic
from quantlab.kernels import native
from quantlab.machine.provenance import cpu_vendor, device_name, processors
from quantlab.storage.files import code_digest, digest, file_digest

OWN = "quantlab."
# Settings that say where something lies, which rows of it are answered, or what runs it: fingerprints and the
# environment stand for them. Rows that are held out from choosing are answered like all others.
PLACES = {
    "model": ("path", "revision", "name", "base", "recipe", "device"),
    "task": ("data_dir", "hub", "revision"),
    "evaluation": ("limit", "order", "seed", "holdout"),
}
LIBRARIES = (
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
)  # besides torch: what computes or cuts texts into tokens
VECTORS = (
    "avx",
    "fma",
    "amx",
    "sve",
    "neon",
)  # begin the names of the instructions that libraries choose kernels by
SWITCHES = (  # environment variables by which oneDNN and MKL choose other kernels
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
)


def key_of(
    described: Mapping[str, Any],
    checkpoint: str,
    data: str,
    device: torch.device,
    versions: Mapping[str, str],
) -> str:
    """The key of a trial: SHA-256 of all that decides its numbers.

    ``described`` is its config as plain data, ``checkpoint`` and ``data`` are fingerprints of the files and
    rows, ``device`` is where it runs, and ``versions`` are those of libraries that only this trial needs. The
    code is quantlab's own, and the source file of every component from elsewhere.
    """
    settings = deciding_settings(described)
    foreign = [
        _source_digest(target) for target in sorted(set(_targets(settings))) if not target.startswith(OWN)
    ]
    surroundings = sorted({**deciding_environment(device), **versions}.items())
    return digest([repr(settings), checkpoint, data, code_digest(), repr(surroundings), *foreign])


def timing_key(profile: Mapping[str, Any], device: torch.device) -> str:
    """Names what decides latency and memory besides the trial's key: the profile's settings, the processor,
    how many of them and how many threads. A machine's name is not in it: containers and cluster nodes get new
    ones."""
    return digest(
        [
            repr(profile),
            device_name(device),
            str(processors()),
            str(torch.get_num_threads()),
            os.environ.get("OMP_WAIT_POLICY", ""),
        ]
    )


def deciding_settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a trial's numbers: no paths, no profile, no name of a device.

    The class of a model of quantlab's own goes too: all of them load what the checkpoint's fingerprint names.
    """
    kept = {
        part: {name: value for name, value in settings.items() if name not in PLACES.get(part, ())}
        if isinstance(settings, Mapping)
        else settings
        for part, settings in described.items()
        if part != "profile"
    }
    if str(kept.get("model", {}).get("_target_", "")).startswith(OWN):
        del kept["model"]["_target_"]
    return kept


def deciding_environment(device: torch.device) -> dict[str, str]:
    """All outside of quantlab that decides numbers on a device, by name: a trial's tags show it."""
    switches = {f"env.{name}": os.environ[name] for name in SWITCHES if name in os.environ}
    return {
        **{f"version.{name}": version(name) for name in LIBRARIES},
        "version.torch": torch.__version__,  # with its build: 2.13.0+cpu
        "matmul_precision": torch.get_float32_matmul_precision(),
        **(_gpu(device) if device.type == "cuda" else _cpu()),
        **switches,
    }


def _cpu() -> dict[str, str]:
    """The processor as kernels are chosen by it: MKL goes by its maker, too."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "cpu_vendor": cpu_vendor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": " ".join(
            sorted(name for name, there in flags.items() if there and name.startswith(VECTORS))
        ),
        "kernels": native.name(),
        "products": arithmetic(),
    }


def _gpu(device: torch.device) -> dict[str, str]:
    return {
        "gpu": device_name(device),
        "version.cuda": str(torch.version.cuda),
        "version.cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "tf32": str(torch.backends.cuda.matmul.allow_tf32),
    }


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
