"""Which machine, libraries and code a number came from."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from quantlab.storage.files import CODE


def machine_tags(device: torch.device) -> dict[str, str]:
    """Host, device, threads and code. What decides numbers beside them is in
    :func:`quantlab.trial.environment.deciding_environment`."""
    return {
        "host": platform.node(),
        "device_name": device_name(device),
        "processors": str(processors()),
        "threads": str(torch.get_num_threads()),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "version.python": platform.python_version(),
        "version.quantlab": version("quantlab"),
        "git_commit": git_commit(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """The CPU's maker, or its architecture where the system does not name one."""
    return _cpuinfo("vendor_id") or _cpuinfo("CPU implementer") or platform.machine()


def processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _cpuinfo(field: str) -> str:
    """The first processor's field in Linux's list; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), ""
    )


@cache
def git_commit() -> str:
    """The commit of quantlab's working tree, ``-dirty`` where files differ; ``unknown`` outside a
    repository."""
    # site-packages may lie inside somebody else's repository: only a tracked file speaks for its commit
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    return (
        _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") if tracked else ""
    ) or "unknown"


def _git(*arguments: str) -> str:
    """What git prints; nothing where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(CODE), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
