"""Which machine, libraries and code a number came from."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from quantlab.cache import CODE

LIBRARIES = ("torch", "transformers", "numpy", "scipy", "quantlab")


def machine_tags(device: torch.device) -> dict[str, str]:
    """Device, threads, library versions and git commit."""
    versions = {f"version.{name}": version(name) for name in LIBRARIES}
    return {
        "device_name": device_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "version.python": platform.python_version(),
        "git_commit": git_commit(),
        **versions,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def git_commit() -> str:
    """The commit of quantlab's working tree, ``-dirty`` where files differ; ``unknown`` outside a repository."""
    # site-packages may lie inside somebody else's repository: only a tracked file speaks for its commit
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    return (_git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") if tracked else "") or "unknown"


def _git(*arguments: str) -> str:
    """What git prints; nothing where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(CODE), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
