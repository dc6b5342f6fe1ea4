"""The environment that decides a trial's numbers on a device: library versions and instruction set."""

import os
from functools import cache
from importlib.metadata import version

import torch

from quantlab.engines.kernel_choice import arithmetic
from quantlab.kernels import native
from quantlab.machine.provenance import cpu_vendor, device_name

LIBRARIES = ("transformers", "tokenizers", "numpy", "scipy")  # torch has an entry of its own
# Prefixes of the CPU features by which libraries choose their kernels.
VECTORS = ("avx", "fma", "amx", "sve", "neon")
SWITCHES = (  # environment variables by which oneDNN and MKL choose other kernels
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
)


def deciding_environment(device: torch.device) -> dict[str, str]:
    """Returns everything outside quantlab that decides numbers on a device, by name. It becomes tags."""
    switches = {f"env.{name}": os.environ[name] for name in SWITCHES if name in os.environ}
    return {
        **_versions(),
        "version.torch": torch.__version__,  # with its build: 2.13.0+cpu
        "matmul_precision": torch.get_float32_matmul_precision(),
        **(_gpu(device) if device.type == "cuda" else _cpu()),
        **switches,
    }


@cache
def _versions() -> dict[str, str]:
    """Returns the libraries' versions, which are read from files."""
    return {f"version.{name}": version(name) for name in LIBRARIES}


def _cpu() -> dict[str, str]:
    """Returns the processor's properties by which libraries choose kernels. MKL goes by its vendor too."""
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
